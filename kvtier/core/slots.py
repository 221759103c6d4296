"""How slots are numbered, and the layout of the generation table.

A namespace numbers its slots from 0; an extent owns the numbers from its base on, and a base is a
multiple of `SLOTS_PER_PAGE`. The generation table is an array of little-endian u64, one per slot
number, so that an extent's generations are whole pages of it. A generation is never zero and never
given twice by an agent; a slot's is changed before the slot is used again, and set to zero before
its memory is taken away. Whoever reads a slot compares the generation after its copy.
"""

from __future__ import annotations

GENERATION_BYTES = 8
SLOTS_PER_PAGE = 512
SLOT_ALIGNMENT_BYTES = 4096
#: Virtual size of a generation table; only the pages in use take memory.
TABLE_SLOTS = 1 << 30


def slot_bytes(block_bytes: int) -> int:
    """The size class of a block: its bytes rounded up to whole pages."""
    return -(-block_bytes // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES


def table_pages(slots: int) -> int:
    """Pages of the generation table that an extent of so many slots owns."""
    return -(-slots // SLOTS_PER_PAGE)
