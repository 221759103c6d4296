"""A worker of one's own: what an engine does to share what it has computed.

    kvtier agent &
    python minimal_worker.py "The river rose again, and the mill stood still. "

Run it twice: the second process loads what the first one computed. The model is a stand-in for
yours; its KV is one row of numbers for each token, which depends on all tokens before it.
"""

from __future__ import annotations

import hashlib
import sys
import time

import numpy as np

from kvtier import BlockStatus, Client, NamespaceSpec
from kvtier.errors import KvtierError
from kvtier.hashing import ALGORITHM, block_hashes

BLOCK_TOKENS, WIDTH, SEED = 16, 1024, 1

#: Whatever makes the bytes of two workers interchangeable. Another seed, and they share nothing.
SPEC = NamespaceSpec(
    name="minimal",
    model="stand-in",
    revision=f"seed {SEED}",
    dtype="float32",
    block_tokens=BLOCK_TOKENS,
    block_bytes=(BLOCK_TOKENS * WIDTH * 4,),
    layout="token,width",
    hash_algorithm=ALGORITHM,
    engine="minimal_worker",
)


def compute(kv: np.ndarray, done: int, tokens: bytes) -> None:
    """Fills the rows of `kv` from `done` on; what comes before is not computed again."""
    random = np.random.default_rng(SEED)
    weights = random.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
    for index in range(done, len(tokens)):
        before = kv[index - 1] if index else np.zeros(WIDTH, np.float32)
        kv[index] = np.tanh(weights @ before + np.float32(tokens[index] / 256))


def main() -> None:
    text = sys.argv[1] if len(sys.argv) > 1 else "The river rose again, and the mill stood still. "
    tokens = (text * 16).encode()
    hashes = block_hashes(list(tokens), BLOCK_TOKENS)
    kv = np.zeros((len(tokens), WIDTH), np.float32)
    blocks = kv[: len(hashes) * BLOCK_TOKENS].reshape(len(hashes), -1)
    started, cached = time.perf_counter(), 0
    with Client(worker="minimal") as client:
        namespace = client.namespace(SPEC)
        try:
            statuses = namespace.load_into(hashes, blocks)
            # A prefix ends at the first block that is not there.
            cached = [*(each == BlockStatus.OK for each in statuses), False].index(False)
        except KvtierError as error:  # without an agent, or with a slow one, go on computing
            print(f"nothing is loaded: {error}")
        compute(kv, cached * BLOCK_TOKENS, tokens)
        seconds = time.perf_counter() - started
        try:
            namespace.store(hashes, blocks)  # those that are there already cost nothing
        except KvtierError as error:
            print(f"nothing is stored: {error}")
    digest = hashlib.sha256(kv.tobytes()).hexdigest()[:8]
    print(
        f"{len(tokens)} tokens, {cached * BLOCK_TOKENS} of them loaded, "
        f"{seconds:.2f} s; KV {digest}"
    )


if __name__ == "__main__":
    main()
