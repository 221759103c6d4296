"""`agent.sessions.namespaces`: layouts of one name."""

from __future__ import annotations

from kvtier import NamespaceSpec
from kvtier.agent.sessions.namespaces import Namespaces


class _Counted(NamespaceSpec):
    """Counts how often layouts are compared."""

    compared = 0

    def differences(self, other: NamespaceSpec) -> list[str]:
        _Counted.compared += 1
        return super().differences(other)


def _spec(name: str = "m", **fields: str) -> NamespaceSpec:
    return NamespaceSpec(name=name, block_bytes=(4096,), **fields)  # type: ignore[arg-type]


def test_siblings_differ_until_they_are_gone() -> None:
    namespaces = Namespaces((), limit=3)
    first, second = _spec(dtype="bf16"), _spec(dtype="fp16")
    assert namespaces.register(first)[1] == []
    assert namespaces.sibling_differences(first) == []
    namespace, differences = namespaces.register(second)
    assert differences == namespaces.sibling_differences(first) == ["dtype"]
    assert [each.spec for each in namespaces.siblings(namespace)] == [first]
    assert set(namespaces.register(_spec(dtype="fp16", model="a"))[1]) == {"dtype", "model"}
    assert set(namespaces.sibling_differences(second)) == {"dtype", "model"}
    for name in "xyz":  # one after the other makes way for these
        namespaces.register(_spec(name))
        assert namespaces.sibling_differences(second) == (["model"] if name in "xy" else [])
    assert not namespaces.siblings(namespace)


def test_to_ask_all_layouts_of_a_name_compares_each_of_them_once() -> None:
    namespaces = Namespaces((), limit=200)
    specs = [
        _Counted(name="m", block_bytes=(4096,), model=str(number), engine=str(number % 2))
        for number in range(200)
    ]
    for spec in specs:
        namespaces.register(spec)
    _Counted.compared = 0
    assert {*map(str, map(namespaces.sibling_differences, specs))} == {"['model', 'engine']"}
    assert _Counted.compared == 200
