"""Behaviour of `kvtier.cli.document`."""

from __future__ import annotations

import json

import pytest
from google.protobuf.duration_pb2 import Duration

from kvtier.cli.document import as_document, print_json
from kvtier.v1 import block_pb2
from kvtier.v1.cache_admin_pb2 import NamespaceInfo, Stats, TierStats


def test_integers_are_numbers_and_enums_are_names() -> None:
    tier = TierStats(tier=block_pb2.TIER_HOST, state=TierStats.ACTIVE, capacity_bytes=2**40)
    document = as_document(Stats(epoch=2**63, tiers=[tier], uptime=Duration(seconds=3)))
    assert document["epoch"] == 2**63
    assert document["uptime"] == "3s"
    assert document["tiers"][0]["tier"] == "TIER_HOST"
    assert document["tiers"][0]["state"] == "ACTIVE"
    assert document["tiers"][0]["capacity_bytes"] == 2**40


def test_every_field_is_there_and_a_missing_message_is_null() -> None:
    document = as_document(Stats())
    assert set(document) == set(Stats.DESCRIPTOR.fields_by_name)
    assert document["tiers"] == []
    assert document["sample_time"] is None
    assert document["version"] == ""


def test_bytes_are_hex_and_maps_are_objects() -> None:
    spec = block_pb2.NamespaceSpec(name="llama", block_bytes=[4096], extra={"isa": "avx2"})
    document = as_document(NamespaceInfo(spec=spec, layout_digest=b"\x01\xab"))
    assert document["layout_digest"] == "01ab"
    assert document["spec"]["block_bytes"] == [4096]
    assert document["spec"]["extra"] == {"isa": "avx2"}


def test_one_document_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(as_document(Stats(version="1")))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out)["version"] == "1"
