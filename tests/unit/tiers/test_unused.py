"""Behaviour of `kvtier.tiers.unused`, against a plain model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtier.tiers.unused import Unused

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["bring", "use", "leave"]),
        st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True),
    )
)


@given(STEPS)
def test_what_came_is_used_or_wasted_or_waits(steps: list[tuple[str, list[int]]]) -> None:
    unused, waiting = Unused(), set[int]()
    brought = used = wasted = 0
    for step, rows in steps:
        if step == "bring":
            for row in set(rows) - waiting:
                unused.bring(row)
                waiting.add(row)
                brought += 1
        elif step == "use":
            assert sorted(unused.use(rows)) == sorted(waiting & set(rows))
            used += len(waiting & set(rows))
            waiting -= set(rows)
        else:
            for row in rows:
                unused.leave(row)
            wasted += len(waiting & set(rows))
            waiting -= set(rows)
        assert unused.count == len(waiting)
        assert [row for row in range(50) if row in unused] == sorted(waiting)
        counts = (unused.brought_count, unused.used_count, unused.wasted_count)
        assert counts == (brought, used, wasted)
