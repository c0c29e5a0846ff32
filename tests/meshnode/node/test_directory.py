from __future__ import annotations

import pytest

from meshnode.errors import Unreachable
from meshnode.mesh import Member, MemberChange, MemberState
from meshnode.node.directory import Directory


def member(node_id: str, name: str, state: MemberState = "alive", incarnation: int = 0) -> Member:
    return Member(name=name, node_id=node_id, state=state, address="127.0.0.1:1", incarnation=incarnation)


def directory_of(*members: Member) -> Directory:
    directory = Directory()
    for one in members:
        directory.take(MemberChange(one, None))
    return directory


def test_a_peer_is_found_by_id_and_by_name() -> None:
    directory = directory_of(member("a1", "anna"), member("b1", "bert"))
    assert directory.resolve("a1") == "a1"
    assert directory.resolve("bert") == "b1"


def test_an_unknown_peer_is_refused_with_what_to_do() -> None:
    with pytest.raises(Unreachable, match=r"no member is named 'carl'; `meshnode members` lists them"):
        directory_of(member("a1", "anna")).resolve("carl")


def test_a_name_means_the_living_one_of_two() -> None:
    directory = directory_of(member("a1", "anna", "dead", 9), member("a2", "anna"))
    assert directory.resolve("anna") == "a2"
    directory.forget("a2")
    assert directory.resolve("anna") == "a1"


def test_a_renamed_member_loses_its_old_name() -> None:
    directory = directory_of(member("a1", "anna"))
    directory.take(MemberChange(member("a1", "bea"), "alive"))
    assert directory.resolve("bea") == "a1"
    with pytest.raises(Unreachable):
        directory.resolve("anna")


def test_members_come_sorted_by_name() -> None:
    assert [one.name for one in directory_of(member("2", "b"), member("1", "a")).members()] == ["a", "b"]


async def test_a_watch_sees_every_change_after_it_was_made_in_order() -> None:
    directory = directory_of(member("a1", "anna"))
    watch = directory.watch()
    directory.take(MemberChange(member("b1", "bert"), None))
    directory.take(MemberChange(member("b1", "bert", "dead"), "alive"))
    seen = [await anext(watch), await anext(watch)]
    assert [(change.member.name, change.member.state, change.before) for change in seen] == [
        ("bert", "alive", None),
        ("bert", "dead", "alive"),
    ]
