"""How much memory a model's KV cache takes, and how large tiers should be."""
