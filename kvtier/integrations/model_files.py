"""What names a model: its name or path, and the files of its weights."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import xxhash

#: Read of each file of weights to tell it from others: this many pieces of this size.
_PIECES, _PIECE_BYTES = 16, 1 << 20


def namespace_name(model: str, otherwise: str) -> str:
    """A namespace's name from a model's name or path; `otherwise` if nothing of it can be used."""
    text = re.sub(r"[^a-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2].lower())
    return text.strip("-._")[:63] or otherwise


def files_digest(directory: Path) -> str:
    """Tells weights from others without reading all of them: `sampled:` and hexadecimal digits."""
    whole = hashlib.sha256()
    kinds = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.index.json")
    for path in sorted({path for kind in kinds for path in directory.glob(kind)}):
        size = path.stat().st_size
        whole.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                whole.update(xxhash.xxh3_128_digest(file.read(_PIECE_BYTES)))
    return f"sampled:{whole.hexdigest()[:32]}"
