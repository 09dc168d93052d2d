"""Tests of the web app, without a browser: pages run by Streamlit's own test runner against a made-up engine."""
