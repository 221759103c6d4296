"""Blocks in slab files on local SSDs."""
