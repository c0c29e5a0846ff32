"""What a node without a log knows of what it wrote itself, before the stream brings it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from consensus.machines.composite import Machine
from consensus.raft import sessions as clients
from meshnode.replication import following as module
from meshnode.replication.following import Following
from meshnode.replication.messages import Part, Reached

OPEN = clients.encode(clients.Open())


def following(told: list[Reached], applied: list[int]) -> Following:
    mesh: Any = None
    return Following(
        mesh,
        Machine(),
        sources=list,
        is_needed=lambda: True,
        applied=lambda index, _stretches, _changes: applied.append(index),
        restored=lambda _: None,
        heard=lambda _: None,
        lost=lambda _: None,
        tell=lambda _, raw: told.append(msgspec.msgpack.decode(raw, type=Reached)),
    )


async def test_what_it_wrote_is_applied_once_all_before_it_is_there() -> None:
    told: list[Reached] = []
    applied: list[int] = []
    follower = following(told, applied)
    follower.wrote(3, [OPEN] * 2)
    follower.wrote(5, [OPEN])
    assert applied == []
    follower._apply(Part(2, "leader", stretches=[(1, [OPEN] * 2)]))
    assert applied == [2, 4, 5]
    follower.wrote(5, [OPEN])
    follower._apply(Part(5, "leader", stretches=[(3, [OPEN] * 3)]))
    assert applied == [2, 4, 5, 5]
    assert told == []  # it follows nobody yet


async def test_it_tells_its_source_how_far_it_came_but_not_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OWN_PAUSE_S", 3600.0)
    told: list[Reached] = []
    follower = following(told, [])
    follower._source, follower._number = "source", 9
    assert follower.source is None
    for index in range(1, 6):
        follower.wrote(index, [OPEN])
    assert told == [Reached(9, 1)]
    assert follower.source == "source"


@pytest.mark.parametrize(("limit", "value"), [("KEPT_OWN", 2), ("KEPT_OWN_BYTES", 2 * len(OPEN))])
async def test_of_what_waits_for_what_comes_before_it_keeps_so_much(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(module, limit, value)
    applied: list[int] = []
    follower = following([], applied)
    for index in (2, 2, 3, 4, 5):
        follower.wrote(index, [OPEN])
    follower._apply(Part(1, "leader", stretches=[(1, [OPEN])]))
    assert applied == [1, 2, 3]
    for index in (5, 6, 7):  # there is room again
        follower.wrote(index, [OPEN])
    follower._apply(Part(4, "leader", stretches=[(4, [OPEN])]))
    assert applied == [1, 2, 3, 4, 5, 6]
