"""Hugging Face models: the KV of a prefix is kept between calls of `generate`, and shared.

    prefixes = PrefixCache(client, model, name="my-model")
    cache = prefixes.restore(input_ids)
    output = model.generate(input_ids, past_key_values=cache)
    cache.save(output)

A batch of prompts, padded on the left, goes the same way; give its `attention_mask` to `restore`
and to `generate`.
"""

from kvtier.integrations.transformers import requirement as requirement  # before the others
from kvtier.integrations.transformers.kvtier_cache import KvtierCache, Saved
from kvtier.integrations.transformers.prefix_cache import PrefixCache

__all__ = ["KvtierCache", "PrefixCache", "Saved"]
