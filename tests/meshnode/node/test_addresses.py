"""Where a node's HTTP server is looked for."""

from __future__ import annotations

import pytest

from meshnode.config import Config
from meshnode.node.addresses import http_address, may_move, new_host_of


@pytest.mark.parametrize(
    ("bind", "found_at"),
    [
        ("127.0.0.1", "127.0.0.1:7705"),
        ("192.0.2.7", "192.0.2.7:7705"),
        ("0.0.0.0", "127.0.0.1:7705"),
        ("::", "[::1]:7705"),
    ],
)
def test_who_is_on_the_machine_finds_http_also_where_it_listens_everywhere(bind: str, found_at: str) -> None:
    assert http_address(Config(http_bind=bind), 7705) == found_at


def test_a_machine_that_lost_its_address_is_found_at_another_one() -> None:
    config = Config(bind="0.0.0.0", seeds=["name-that-is-not-asked-for:7700"])
    lost = "192.0.2.1"  # TEST-NET-1: no machine has it
    assert new_host_of(config, lost, ["198.51.100.1:7700"]) != lost
    assert new_host_of(config, "127.0.0.1", ["198.51.100.1:7700"]) is None  # still ours


@pytest.mark.parametrize("settings", [{"bind": "127.0.0.1"}, {"bind": "0.0.0.0", "advertise": "host-a"}])
def test_an_address_that_was_chosen_by_hand_stays(settings: dict[str, str]) -> None:
    config = Config(**settings)
    assert not may_move(config)
    assert new_host_of(config, "192.0.2.1", ["198.51.100.1:7700"]) is None
