"""What makes the KV of two Hugging Face models interchangeable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
import transformers
import xxhash
from transformers import PreTrainedConfig, PreTrainedModel

from kvtier.core.namespace import NamespaceSpec
from kvtier.hashing import ALGORITHM
from kvtier.integrations.transformers.kv_group import LAYOUT, KvGroup

#: Settings that say where a model comes from or how it is used; `dtype` is only a wish.
_INCIDENTAL = frozenset(
    {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"}
)
#: With these the keys of a token depend on the length of the text that was computed with it.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def namespace_spec(
    model: PreTrainedModel,
    groups: Sequence[KvGroup],
    *,
    name: str,
    tenant: str,
    revision: str,
) -> NamespaceSpec:
    """A namespace for this model's blocks.

    `revision` names the weights of `model.name_or_path`; if it is empty, a digest of the weights
    stands for both. Raises ValueError for a model whose keys depend on more than their prefix.
    """
    config = model.config.get_text_config(decoder=True)
    _check_rope(config)
    extra = {
        "architecture": type(model).__name__,
        "attention": str(config._attn_implementation),
        "config": _config_digest(config),
        "transformers": transformers.__version__.partition(".")[0],
    }
    extra |= {f"group.{index}": group.description for index, group in enumerate(groups)}
    return NamespaceSpec(
        name=name,
        tenant=tenant,
        model=str(model.name_or_path) if revision else "",
        revision=revision or weights_digest(model),
        dtype=str(groups[0].dtype).removeprefix("torch."),
        block_tokens=groups[0].block_tokens,
        layers=sum(len(group.layers) for group in groups),
        kv_heads=groups[0].kv_heads,
        head_dim=groups[0].head_dim,
        layout=LAYOUT,
        block_bytes=tuple(group.block_bytes for group in groups),
        hash_algorithm=ALGORITHM,
        engine="transformers",
        extra=extra,
    )


def weights_digest(model: PreTrainedModel) -> str:
    """A digest of every weight, `xxh3-128:` and hexadecimal digits; about 0.2 s per GB."""
    whole = hashlib.sha256()
    seen = set()
    for name, weight in sorted(model.state_dict().items()):
        if weight.device.type == "meta":
            raise ValueError(f"revision is empty, and the weight {name} is not in memory; give one")
        place = (weight.data_ptr(), weight.shape, weight.stride())
        if place in seen:  # tied to another
            continue
        seen.add(place)
        data = weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
        whole.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        whole.update(xxhash.xxh3_128_digest(data.data))
    return f"xxh3-128:{whole.hexdigest()[:32]}"


def _config_digest(config: PreTrainedConfig) -> str:
    settings = json.loads(config.to_json_string(use_diff=False))
    kept = {key: value for key, value in settings.items() if key not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _check_rope(config: PreTrainedConfig) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in (parameters, *parameters.values()):
        kind = each.get("rope_type") if isinstance(each, dict) else None
        if kind in _LENGTH_DEPENDENT_ROPE:
            raise ValueError(
                f"model: with rope_type {kind} a prefix has other keys in a longer text, "
                "so they cannot be shared"
            )
