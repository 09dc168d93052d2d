"""Tests of the whole app in a real browser: `python -m app` as a process, Debian's Chromium through Playwright."""
