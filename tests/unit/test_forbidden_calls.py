"""Nothing in the source turns bytes from elsewhere into code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_repository import REPOSITORY

SOURCES = sorted((REPOSITORY / "kvtier").rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    ("yaml", "load"), ("yaml", "load_all"), ("yaml", "full_load"), ("yaml", "full_load_all"),
    ("yaml", "unsafe_load"), ("yaml", "unsafe_load_all"), ("torch", "load"), ("os", "system"),
}  # fmt: skip
ARGUMENTS = {"allow_pickle", "shell"}


def forbidden(tree: ast.AST) -> Iterator[str]:
    """What is done there that must not be, with its line."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name.partition(".")[0] for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        yield from (f"line {node.lineno}: import {name}" for name in names if name in MODULES)  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            yield from _forbidden_call(node)


def _forbidden_call(node: ast.Call) -> Iterator[str]:
    match node.func:
        case ast.Name(name) if name in BUILTINS:
            yield f"line {node.lineno}: {name}()"
        case ast.Attribute(ast.Name(module), name) if (module, name) in METHODS:
            yield f"line {node.lineno}: {module}.{name}()"
    for keyword in node.keywords:
        if keyword.arg in ARGUMENTS:
            yield f"line {node.lineno}: {keyword.arg}="
        if keyword.arg == "Loader" and "Safe" not in ast.unparse(keyword.value):
            yield f"line {node.lineno}: Loader={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_does_it(path: Path) -> None:
    assert list(forbidden(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import pickle as json",
        "from marshal import loads",
        "def f():\n    from _pickle import loads",
        "eval('1')",
        "x = __import__(name)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.compose(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_it_would_be_found(text: str) -> None:
    assert list(forbidden(ast.parse(text)))


def test_there_is_a_source() -> None:
    assert len(SOURCES) > 200
