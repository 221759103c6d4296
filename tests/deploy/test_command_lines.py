"""Behaviour of the check itself."""

from __future__ import annotations

import pytest

from tests.deploy.command_lines import check


def test_what_the_program_takes_passes() -> None:
    assert check(["drain", "--grace", "20"]) == "drain"
    assert check(["config", "check", "agent.yaml"]) == "config check"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drian"], "No such command 'drian'"),
        (["drain", "--grase", "20"], "No such option: --grase"),
        (["drain", "--grace", "soon"], "number"),
    ],
)
def test_what_it_refuses_does_not(arguments: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        check(arguments)
