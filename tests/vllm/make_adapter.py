"""Makes a LoRA adapter with random weights for the model of `examples/vllm/make_model.py`.

python make_adapter.py MODEL DIRECTORY SEED
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8
#: Projections of an attention, and the settings that say how wide their results are.
_PROJECTIONS = {"q_proj": "num_attention_heads", "v_proj": "num_key_value_heads"}


def make_adapter(model: Path, directory: Path, seed: int) -> None:
    """Weights are wide enough that it changes what the model says."""
    settings = json.loads((model / "config.json").read_text())
    torch.manual_seed(seed)
    weights = {}
    for layer in range(settings["num_hidden_layers"]):
        for name, heads in _PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            wide = settings[heads] * settings["head_dim"]
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, settings["hidden_size"]) * 0.1
            weights[f"{prefix}.lora_B.weight"] = torch.randn(wide, RANK) * 0.1
    directory.mkdir()
    save_file(weights, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(_PROJECTIONS),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    make_adapter(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
