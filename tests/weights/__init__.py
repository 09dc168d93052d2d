"""Tests of warp_core.weights."""
