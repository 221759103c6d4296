"""Exceptions and numbers that both ends of the wire must agree on."""

from __future__ import annotations

import inspect

import grpc
import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from kvtier import errors
from kvtier.core.block import BlockStatus, Match, Tier
from kvtier.core.status import CODES, ERRORS
from kvtier.errors import ConfigError, KvtierError
from kvtier.v1 import block_cache_pb2, block_pb2


def exceptions() -> list[type[KvtierError]]:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    return [each for each in classes if issubclass(each, KvtierError)]


def test_every_exception_that_crosses_the_wire_has_a_code() -> None:
    assert set(exceptions()) - set(CODES) == {KvtierError, ConfigError}


def test_codes_are_grpc_codes_and_unique() -> None:
    numbers = {code.name: code.value[0] for code in grpc.StatusCode if code.name != "OK"}
    assert {code.name: code.value for code in CODES.values()}.items() <= numbers.items()
    assert set(ERRORS) == set(CODES.values())


def test_a_code_comes_back_as_the_exception_that_was_raised() -> None:
    others = {error for error in CODES if ERRORS[CODES[error]] is not error}
    assert others == {errors.NoSharedMemoryError}  # a client raises it without asking


def test_every_exception_stands_in_the_tree_of_the_module() -> None:
    assert errors.__doc__ is not None
    for each in exceptions():
        assert f"{each.__name__} " in errors.__doc__ or f"{each.__name__}\n" in errors.__doc__


def test_every_exception_is_a_kvtier_error() -> None:
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    assert set(classes) == set(exceptions())


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (Tier, block_pb2.Tier, "TIER_"),
        (BlockStatus, block_pb2.BlockStatus, ""),
        (Match, block_cache_pb2.LookupPrefixRequest.Match, ""),
    ],
)
def test_enums_have_the_numbers_of_the_proto(
    ours: type[Tier | BlockStatus | Match], theirs: EnumTypeWrapper, prefix: str
) -> None:
    numbers = {f"{prefix}{each.name}": each.value for each in ours}
    assert numbers == {name: number for name, number in theirs.items() if number}
