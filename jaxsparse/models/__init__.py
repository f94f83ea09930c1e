"""Whole Flax models: layers made sparse and dense again, and what they then cost."""
