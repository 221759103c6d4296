"""SGLang's own modules from its published wheel, without what it needs on a machine with a GPU.

The wheel is installed without its requirements. Its packages' `__init__` files, which import the
whole engine, are passed over; what a module imports and is not there becomes a stub.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKAGES = ("sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.mem_cache.storage")
#: Modules of SGLang of which only names are needed.
_STUBBED = (
    "sglang.kernels",
    "sglang.srt.layers",
    "sglang.srt.mem_cache.device_pool_info",
    "sglang.srt.mem_cache.memory_pool",
    "sglang.srt.platforms",
    "sglang.srt.runtime_context",
    "sglang.srt.utils",
)


def is_installed() -> bool:
    """Whether the wheel is there."""
    return importlib.util.find_spec("sglang") is not None


@contextmanager
def importable() -> Iterator[None]:
    """Within it, modules of the wheel can be imported; after it they are forgotten."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0]).parent
    before = set(sys.modules)
    for name in _PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[name] = package
    for name in _STUBBED:
        sys.modules[name] = _Stub(name)
    finder = _Missing()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.startswith(("sglang", "kvtier.integrations.sglang")) or isinstance(
                sys.modules[name], _Stub
            ):
                del sys.modules[name]


class _Anything(type):
    """Whatever name a class is asked for, it has it: a class that takes any arguments."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name


class _Name(metaclass=_Anything):
    def __init__(self, *_: object, **__: object) -> None: ...

    def __init_subclass__(cls, **_: object) -> None: ...

    def __bool__(self) -> bool:  # is_cuda() and the like
        return False


class _Stub(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, whatever is asked for in it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name


class _Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for every module that nobody else finds."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec:
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...
