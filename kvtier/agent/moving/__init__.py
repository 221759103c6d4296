"""Blocks on their way between tiers, and the threads that carry them."""
