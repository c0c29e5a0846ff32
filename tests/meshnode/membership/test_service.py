"""Membership over real UDP sockets on loopback; how long things take is asserted under the virtual clock."""

from __future__ import annotations

import asyncio
import socket

import msgspec
import pytest

from channels.errors import AddressInUse
from meshnode.errors import ConfigError, InvalidInput, JoinError, TooLarge
from meshnode.membership.datagrams import Plain, open_socket
from meshnode.membership.messages import (
    Alive,
    Gossip,
    JoinAnswer,
    JoinRefusal,
    JoinRequest,
    PushPull,
    Record,
    decode_datagram,
    encode,
)
from meshnode.membership.settings import LAN
from meshnode.mesh import Caller
from meshnode.security.keyfile import KeyFile, make_key
from meshnode.security.ring import KeyRing
from meshnode.security.seal import SealedEnvelope, now_ms
from tests.meshnode.membership.mesh import Mesh, wait_until
from tests.ports import free_base


async def test_five_nodes_that_know_one_seed_converge() -> None:
    async with Mesh(LAN) as mesh:
        seed = await mesh.start("n0")
        await asyncio.gather(*(mesh.start(f"n{i}", seed) for i in range(1, 5)))
        await wait_until(mesh.converged)
        for peer in mesh.peers:
            assert set(peer.introduced) == {other.node_id for other in mesh.peers if other is not peer}
            assert peer.membership.mesh_id == seed.membership.mesh_id


async def test_fifty_nodes_that_join_one_seed_at_once_converge() -> None:
    async with Mesh(LAN) as mesh:
        seed = await mesh.start("n0")
        await asyncio.gather(*(mesh.start(f"n{i}", seed, timeout_s=60) for i in range(1, 50)))
        await wait_until(mesh.converged)
        assert all(len(peer.introduced) == 49 for peer in mesh.peers)


async def test_a_killed_node_is_seen_dead_by_all() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("n0")
        victim, *_ = await asyncio.gather(*(mesh.start(f"n{i}", seed) for i in range(1, 5)))
        await wait_until(mesh.converged)
        await mesh.kill(victim)
        survivors = [peer for peer in mesh.peers if peer.running]
        await wait_until(lambda: all(peer.state_of("n1") == "dead" for peer in survivors))
        assert all("n1" in peer.forgotten for peer in survivors)


async def test_a_node_that_leaves_is_left_not_dead() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        other = await mesh.start("b", seed)
        third = await mesh.start("c", other)
        await wait_until(mesh.converged)
        await third.membership.leave()
        await mesh.kill(third)
        await wait_until(lambda: seed.state_of("c") == other.state_of("c") == "left")
        assert "dead" not in {change.member.state for change in seed.changes if change.member.name == "c"}


async def test_a_node_may_return_at_the_same_address_with_a_new_identity() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        port = free_base()
        before = await mesh.start("b", seed, port=port)
        await wait_until(mesh.converged)
        await mesh.kill(before)
        after = await mesh.start("b", seed, port=port)
        await wait_until(lambda: ("alive", after.node_id) in {(m.state, m.node_id) for m in seed.membership.members()})
        await wait_until(lambda: before.node_id not in seed.introduced)
        assert after.membership.me.incarnation == after.membership.record(after.node_id).started  # type: ignore[union-attr]  # it knows itself


async def test_a_node_may_return_with_its_identity_at_a_new_address() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        third = await mesh.start("c", seed)
        before = await mesh.start("b", seed, node_id="b" * 32)
        await wait_until(mesh.converged)
        await mesh.kill(before)
        after = await mesh.start("b", seed, node_id="b" * 32)
        for peer in (seed, third):
            await wait_until(lambda peer=peer: peer.introduced.get("b" * 32) == after.membership.me)  # type: ignore[misc]
        assert after.membership.me.incarnation == after.membership.record("b" * 32).started  # type: ignore[union-attr]


async def test_a_copied_identity_is_refused_and_told_who_holds_it() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        original = await mesh.start("original", seed, node_id="b" * 32)
        with pytest.raises(JoinError, match=f"already runs as 'original' at {original.address}.*identity.key"):
            await mesh.start("copy", seed, node_id="b" * 32)
        await wait_until(lambda: seed.state_of("original") == "alive")
        assert not original.failures


async def test_a_copied_identity_is_refused_by_its_own_holder_even_if_the_copys_clock_is_behind() -> None:
    async with Mesh() as mesh:
        original = await mesh.start("original", node_id="b" * 32)
        with pytest.raises(JoinError, match="already runs as 'original'"):
            await mesh.start("copy", original, node_id="b" * 32, started=17)
        assert not original.failures


async def test_two_meshes_never_merge_by_a_wrong_seed() -> None:
    async with Mesh() as mesh:
        ours = await mesh.start("a", mesh_id="1" * 32)
        with pytest.raises(JoinError, match=f"it belongs to mesh {'1' * 32}, this node to mesh {'2' * 32}"):
            await mesh.start("b", ours, mesh_id="2" * 32, timeout_s=30)
        assert ours.states() == {"a": "alive"}


async def test_a_seed_refuses_who_belongs_to_another_mesh_whatever_that_one_checks_itself() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a", mesh_id="1" * 32)
        request = Plain().seal(encode(JoinRequest(b"n" * 16, "x" * 32, "x", "2" * 32, bytes(1000))), None)
        with open_socket("127.0.0.1", 0) as stranger:
            host, _, port = seed.address.rpartition(":")
            stranger.sendto(request, (host, int(port)))
            answer = await asyncio.get_running_loop().sock_recv(stranger, 2000)
        refusal = decode_datagram(Plain().open(answer, None)[0])
        assert isinstance(refusal, JoinRefusal)
        assert not refusal.retry
        assert "1" * 32 in refusal.reason


async def test_a_state_exchange_is_refused_to_another_mesh_and_to_who_pretends_to_be_another() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a", mesh_id="1" * 32)
        other = await mesh.start("b", mesh_id="2" * 32)
        offer = other.membership._swim.offer()
        with pytest.raises(JoinError, match="mesh"):
            seed.membership.answer_push_pull(PushPull("2" * 32, offer), Caller(other.node_id, 0))
        with pytest.raises(InvalidInput, match="its own record"):
            seed.membership.answer_push_pull(PushPull("1" * 32, offer), Caller("somebody else", 0))
        bad = msgspec.structs.replace(offer, digests=b"short")
        with pytest.raises(InvalidInput, match="digests"):
            seed.membership.answer_push_pull(PushPull("1" * 32, bad), Caller(other.node_id, 0))


async def test_datagrams_of_another_mesh_are_ignored_and_counted() -> None:
    async with Mesh() as mesh:
        ours = await mesh.start("a", mesh_id="1" * 32)
        theirs = await mesh.start("b", mesh_id="2" * 32)
        stray = Plain().seal(
            encode(Gossip("b", [encode(Alive(theirs.membership._swim.me))])), theirs.membership.mesh_id
        )
        theirs.membership._carrier.send(ours.address, stray)
        await wait_until(lambda: ours.membership.statistics().get("dropped_other_mesh") == 1)
        assert ours.states() == {"a": "alive"}


@pytest.mark.parametrize("ahead_s", [30, -30])
async def test_a_joiner_whose_clock_differs_from_its_seeds_joins_and_talks_by_datagrams_at_once(ahead_s: int) -> None:
    ring = KeyRing(KeyFile((make_key(),)))
    began = now_ms()

    def sealed(node_id: str, offset_s: int, older_s: int = 0) -> SealedEnvelope:
        starts = iter([began - older_s * 1000])
        return SealedEnvelope(ring, node_id, clock=lambda: next(starts, now_ms()) + offset_s * 1000)

    async with Mesh() as mesh:
        names = {"a": "a" * 32, "b": "b" * 32, "c": "c" * 32}
        # The two have run for a minute; the third starts now.
        a = await mesh.start("a", node_id=names["a"], envelope=sealed(names["a"], 0, 60))
        b = await mesh.start("b", a, node_id=names["b"], envelope=sealed(names["b"], 0, 60))
        c = await mesh.start("c", b, node_id=names["c"], envelope=sealed(names["c"], ahead_s))
        await wait_until(mesh.converged)
        mesh.tcp_blocked = True
        # Only answered datagrams measure a round trip.
        pairs = [(one, other) for one in (a, b, c) for other in (a, b, c) if one is not other]
        await wait_until(lambda: all(other.node_id in one.membership.round_trips() for one, other in pairs))


async def test_an_unreachable_seed_is_named_with_the_reason() -> None:
    async with Mesh() as mesh:
        with open_socket("127.0.0.1", 0) as nobody:
            port = nobody.getsockname()[1]
            with pytest.raises(JoinError, match=rf"127.0.0.1:{port}: no answer.*no-such-host.invalid:7700: .*the name"):
                await mesh.start("a", f"127.0.0.1:{port}", "no-such-host.invalid:7700", timeout_s=0.5)


async def test_a_seed_that_comes_up_later_is_found() -> None:
    async with Mesh() as mesh:
        port = free_base()
        joining = asyncio.create_task(mesh.start("b", f"localhost:{port}", timeout_s=60))
        await wait_until(lambda: bool(mesh.peers) and mesh.peers[0].membership.statistics().get("sent", 0) > 0)
        await mesh.start("a", port=port)
        await joining
        await wait_until(mesh.converged)


async def test_one_list_of_seeds_serves_all_nodes_and_founds_one_mesh() -> None:
    async with Mesh() as mesh:
        ports = [free_base() for _ in range(3)]
        seeds = [f"127.0.0.1:{port}" for port in ports]
        await asyncio.gather(*(mesh.start(f"n{i}", *seeds, port=port) for i, port in enumerate(ports)))
        await wait_until(mesh.converged)
        assert len({peer.membership.mesh_id for peer in mesh.peers}) == 1


async def test_a_whole_mesh_that_restarts_at_once_finds_itself_again() -> None:
    async with Mesh() as mesh:
        first = await mesh.start("a", mesh_id="1" * 32, join=False)
        second = await mesh.start("b", mesh_id="1" * 32, join=False)
        await asyncio.gather(first.membership.join([second.address]), second.membership.join([first.address]))
        await wait_until(mesh.converged)


async def test_a_node_whose_coordination_channel_is_blocked_is_told_so_at_the_join() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        mesh.tcp_blocked = True
        with pytest.raises(JoinError, match="does not answer"):
            await mesh.start("b", seed, timeout_s=1.5)


async def test_ipv6_nodes_find_each_other() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with Mesh() as mesh:
        seed = await mesh.start("a", host="::1")
        await mesh.start("b", seed, host="::1")
        await wait_until(mesh.converged)


async def test_a_node_bound_to_all_addresses_meets_ipv4_nodes() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a", host="::", advertise="127.0.0.1")
        await mesh.start("b", seed)
        await wait_until(mesh.converged)


async def test_tags_programs_and_load_reach_the_others() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        await mesh.start("b", seed)
        third = await mesh.start("c", seed)
        third.membership.set_tags({"gpu": "yes"})
        third.membership.set_programs({"qa"})
        third.membership.set_load(8, 3)
        for peer in mesh.peers:
            await wait_until(
                lambda peer=peer: any(  # type: ignore[misc]
                    (m.tags, m.programs, m.slots, m.busy) == ({"gpu": "yes"}, frozenset({"qa"}), 8, 3)
                    for m in peer.membership.members()
                )
            )
        assert third.changes[-1].member == third.membership.me


async def test_metadata_above_the_cap_is_refused_and_the_cap_named() -> None:
    async with Mesh() as mesh:
        peer = await mesh.start("a")
        with pytest.raises(TooLarge, match="the cap is 512"):
            peer.membership.set_tags({"story": "x" * 600})
        assert peer.membership.me.tags == {}


async def test_garbage_and_unpadded_joins_get_no_answer_and_leave_the_node_alive() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        small = Plain().seal(encode(JoinRequest(b"n" * 16, "x" * 32, "x", "")), None)
        with open_socket("127.0.0.1", 0) as stranger:
            host, _, port = seed.address.rpartition(":")
            mesh_id = seed.membership.mesh_id
            junk = [b"", b"mn\x01", b"\xff" * 1400, small, Plain().seal(b"\x91" * 900, mesh_id)]
            for datagram in junk:
                stranger.sendto(datagram, (host, int(port)))
            await wait_until(lambda: seed.membership.statistics().get("received") == len(junk))
            with pytest.raises(BlockingIOError):
                stranger.recv(2000)
        statistics = seed.membership.statistics()
        assert statistics["dropped_malformed"] == 4
        assert statistics["dropped_unpadded_join"] == 1
        await mesh.start("b", seed)
        await wait_until(mesh.converged)


async def test_the_answer_to_a_join_is_not_longer_than_the_request() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        request = Plain().seal(encode(JoinRequest(b"n" * 16, "x" * 32, "x", "", bytes(1000))), None)
        with open_socket("127.0.0.1", 0) as stranger:
            host, _, port = seed.address.rpartition(":")
            stranger.sendto(request, (host, int(port)))
            answer = await asyncio.get_running_loop().sock_recv(stranger, 2000)
        assert isinstance(decode_datagram(Plain().open(answer, None)[0]), JoinAnswer)
        assert len(answer) <= len(request)


def test_a_port_that_is_taken_is_said() -> None:
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(AddressInUse, match="taken by another process"):
        open_socket("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="name an address of this machine"):
        open_socket("no-such-host.invalid", 0)


async def test_every_change_is_told_in_order() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        other = await mesh.start("b", seed)
        await wait_until(mesh.converged)
        await other.membership.leave()
        await wait_until(lambda: seed.state_of("b") == "left")
        # Not just two: on a busy machine it may be suspected in between.
        seen = [change for change in seed.changes if change.member.name == "b"]
        assert seen[-1].member.state == "left"
        assert [change.before for change in seen] == [None, *(change.member.state for change in seen[:-1])]
        assert seen[0].member.state == "alive"


async def test_round_trips_of_probes_are_measured() -> None:
    async with Mesh() as mesh:
        seed = await mesh.start("a")
        other = await mesh.start("b", seed)
        await wait_until(lambda: other.node_id in seed.membership.round_trips())
        assert 0 < seed.membership.round_trips()[other.node_id] < 1


def test_a_record_is_refused_above_its_cap() -> None:
    with open_socket("127.0.0.1", 0) as bound:
        from meshnode.membership.service import Membership

        record = Record("a" * 32, "a", 1, "127.0.0.1:1", 1, http="h" * 1200)
        with pytest.raises(TooLarge, match="the cap is 1100"):
            Membership(record, bound, request=None, introduce=print, forget=print)  # type: ignore[arg-type]  # unused
