"""WARP (Weight Averaged Rewarded Policies, Rame et al. 2024): train, merge, explore, export."""

__all__ = ["__version__"]

__version__ = "0.1.0"
