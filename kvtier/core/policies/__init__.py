"""Which block goes first when a tier is full."""
