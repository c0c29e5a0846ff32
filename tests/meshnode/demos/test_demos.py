"""Rounds between real nodes over real sockets in this process; one of them lies."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import meshnode
from consensus.bft.messages import Message, Phase, Vote
from consensus.bft.node import Persist
from consensus.machines.rounds import RoundState
from consensus.selection.agreement import read
from consensus.selection.candidates import Merged, merge
from consensus.selection.choice import Weights
from consensus.selection.scores import SCALE
from meshnode.app import load_app
from meshnode.cli.demos import demos
from meshnode.demos import RoundProgress, Selection, of_proof
from meshnode.demos.journal import Kept, Signed
from meshnode.demos.progress import describe
from meshnode.demos.task import split
from meshnode.demos.validator import Validator
from tests.meshnode.demos.app import examples
from tests.meshnode.replication.conftest import Nodes, until

DEADLINE_S = 120.0  # reached on failure only


class Liar(Validator):
    """Praises what is bad, and tells half of the validators that it votes for something else."""

    async def score(self, merged: Sequence[Merged], k: int) -> tuple[int, ...]:
        return tuple(SCALE - score for score in await super().score(merged, k))

    async def say(self, peer: str, message: Message) -> None:
        state = self.state
        if isinstance(message, Vote) and message.phase != Phase.DUMMY and state is not None and peer > self.me:
            ballot = state.round.ballot(message.iteration, message.phase, b"\xee" * 32)
            message = Vote(message.iteration, message.phase, b"\xee" * 32, self.me, self.sign(ballot.encode()))
        await super().say(peer, message)


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        await nodes.close()


def _programs_are_known(node: meshnode.Node, count: int) -> bool:
    return sum("colour" in one.programs and one.slots > 0 for one in node.members()) == count


def _decided(node: meshnode.Node, round_id: str) -> RoundState | None:
    state = node.mesh.state.machine.rounds.get(round_id)
    return state if state is not None and state.phase == "decided" else None


async def start(nodes: Nodes, count: int, folder: Path | None = None) -> list[meshnode.Node]:
    for number in range(1, count + 1):
        data_dir = folder / f"n{number}" if folder is not None else None
        await nodes.start(f"n{number}", data_dir=data_dir, app=load_app("tests.meshnode.demos.app:app"), workers=1)
    started = list(nodes.running.values())
    for node in started:
        await until(partial(_programs_are_known, node, count), f"{count} nodes with the program at {node.name}")
    return started


async def test_honest_nodes_agree_though_one_lies_and_the_proof_holds(nodes: Nodes, tmp_path: Path) -> None:
    one, *others = await start(nodes, 4, tmp_path)
    others[0].demos.make = Liar
    await others[1].variables.register("demos.diversity", int, 600)
    seen: list[tuple[str, RoundProgress]] = []
    stop = others[2].mesh.subscribe(RoundProgress, lambda peer, told: seen.append((peer, told)))
    told: list[RoundProgress] = []
    chosen = await asyncio.wait_for(
        one.demos.select("colour", examples(24), k=3, deadline_s=DEADLINE_S, on_progress=told.append), DEADLINE_S + 30
    )
    assert (chosen.decided, chosen.reason) == ("mesh", "")
    assert len(chosen.demos) == 3
    _check_that_no_lie_moved_a_score(chosen, others[0].node_id)
    for node in others:
        state = await until(partial(_decided, node, chosen.round_id), f"the decision at {node.name}")
        proof = state.proof()
        assert proof is not None
        assert of_proof(proof).digest == chosen.digest
        assert state.rules.weights == Weights(diversity=600), "the mesh's weights, whoever opens the round"
    assert chosen.proof is not None
    _check_what_was_told(one, others[2], chosen, told, seen)
    stop()
    again = of_proof(msgspec.json.decode(msgspec.json.encode(chosen.proof), type=type(chosen.proof)))
    assert again.demos == chosen.demos
    assert list((tmp_path / "n1" / "demos").iterdir()), "what was signed is on disk"
    _check_by_command(tmp_path / "proof.json", chosen)
    with pytest.raises(meshnode.InvalidInput, match="does not hold"):
        of_proof(msgspec.structs.replace(chosen.proof, round_id="another"))
    with pytest.raises(meshnode.InvalidInput, match="not its own"):
        of_proof(msgspec.structs.replace(chosen.proof, validators={"0" * 32: bytes(32)}))
    # Two of four go silent: no majority is left, and the one asked chooses alone.
    for node in others[1:]:
        await nodes.crash(node.name)
    alone = await asyncio.wait_for(one.demos.select("colour", examples(12), k=2, deadline_s=8), 40)
    assert alone.decided == "local"
    assert alone.reason
    assert alone.proof is None
    assert alone.demos


def _check_that_no_lie_moved_a_score(chosen: Selection, liar: str) -> None:
    assert chosen.proof is not None
    demos = [msgspec.json.decode(one.demo) for one in merge(chosen.proof.candidates)]
    honest = [reveal.scores for reveal in read(chosen.proof.value).reveals if reveal.node_id != liar]
    for demo, score in zip(chosen.demos, chosen.scores, strict=True):
        said = [scores[demos.index(demo)] for scores in honest]
        assert min(said) <= round(score * SCALE) <= max(said)


def _check_what_was_told(
    one: meshnode.Node,
    watching: meshnode.Node,
    chosen: Selection,
    told: list[RoundProgress],
    seen: list[tuple[str, RoundProgress]],
) -> None:
    phases = list(dict.fromkeys(step.phase for step in told))
    assert phases[0] == "invited"
    assert phases[-1] == "decided"
    assert {"candidates", "commitments"} < set(phases)
    last = told[-1]
    assert (last.result, last.validators, last.quorum) == (chosen.digest, 4, 3)
    assert len(last.certificate) == 64
    assert max(step.scored for step in told) == last.candidates
    assert all(describe(step) for step in told)
    assert one.demos.rounds()[-1] == last
    assert watching.demos.rounds()[-1].certificate == last.certificate
    # Telemetry may lose some; not all of several validators' words about every phase.
    assert chosen.proof is not None
    assert {peer for peer, _ in seen} <= chosen.proof.validators.keys()
    assert {step.round_id for _, step in seen} == {chosen.round_id}


def _check_by_command(file: Path, chosen: Selection) -> None:
    proof = chosen.proof
    assert proof is not None
    file.write_bytes(msgspec.json.encode(proof))
    held = CliRunner().invoke(demos, ["verify", str(file)])
    assert held.exit_code == 0
    assert f"holds: 3 demos, digest {chosen.digest}" in held.output
    shown = CliRunner().invoke(demos, ["show", "--json", str(file)])
    assert json.loads(shown.output)["demos"] == chosen.demos
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(proof, mesh_id="another")))
    assert CliRunner().invoke(demos, ["verify", str(file)]).exit_code != 0
    file.write_bytes(b"{}")
    assert CliRunner().invoke(demos, ["verify", str(file)]).exit_code != 0


async def test_demos_are_chosen_over_http(nodes: Nodes) -> None:
    node = await nodes.start("n1", app=load_app("tests.meshnode.demos.app:app"), workers=1, http=True)
    await until(partial(_programs_are_known, node, 1), "the program")

    def post(body: object) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {node.token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(node.ready["http"], timeout=20)
        try:
            connection.request("POST", "/demos", json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    status, found = await asyncio.to_thread(
        post, {"program": "colour", "train": examples(12), "k": 2, "deadline_s": 10}
    )
    assert (status, found["decided"], len(found["demos"])) == (200, "local", 2)
    status, _ = await asyncio.to_thread(post, {"program": "colour"})
    assert status == 400


async def test_a_mesh_too_small_to_outvote_a_liar_says_so(nodes: Nodes) -> None:
    (one,) = await start(nodes, 1)
    chosen = await one.demos.select("colour", examples(12), k=2, deadline_s=10)
    assert chosen.decided == "local"
    assert chosen.reason == "1 validators answered, 4 are needed to outvote a liar"
    assert len(chosen.demos) == 2
    with pytest.raises(meshnode.InvalidInput, match="empty"):
        await one.demos.select("colour", [], k=2)
    with pytest.raises(meshnode.InvalidInput, match="k lies"):
        await one.demos.select("colour", examples(3), k=0)


def test_what_was_signed_is_read_again_and_a_torn_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "demos" / "round.signed"
    kept = Kept(path)
    kept.add(Persist(1, Phase.NOTARIZE, b"\xaa" * 32, b"voted for"))
    kept.add(Persist(2, Phase.DUMMY, bytes(32)))
    with path.open("ab") as file:
        file.write(b"[3, 2")
    both = [Persist(1, Phase.NOTARIZE, b"\xaa" * 32), Persist(2, Phase.DUMMY, bytes(32))]
    assert Kept(path).read().ballots == both
    assert [ballot.value for ballot in Kept(path).read().ballots] == [b"voted for", b""]
    kept.add(Persist(3, Phase.DUMMY, bytes(32)))
    assert Kept(path).read().ballots == [*both, Persist(3, Phase.DUMMY, bytes(32))], "the torn line is gone"
    assert Kept(None).read() == Signed()


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_demos_and_held_out_examples_are_apart_and_the_same_everywhere(count: int) -> None:
    rows = examples(count)
    source, held_out = split(rows, "round")
    assert (source, held_out) == split(rows, "round")
    assert source
    assert held_out
    assert count == 1 or not set(source) & set(held_out)
