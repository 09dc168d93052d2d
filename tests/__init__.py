"""The test suite: one folder per package of warp_core, one file per module."""
