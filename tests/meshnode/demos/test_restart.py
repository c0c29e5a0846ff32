"""A validator that is killed in the middle of a round: it comes back, goes on, and contradicts nothing it signed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from consensus.bft.messages import Certificate, Message, Phase, Status
from consensus.bft.node import Persist
from consensus.machines.rounds import RoundState
from consensus.selection.agreement import Proof, read
from meshnode.app import load_app
from meshnode.demos.journal import KEPT_ROUNDS, Journal, Kept, Signed
from meshnode.demos.task import Task
from meshnode.demos.validator import Validator
from meshnode.values import pack
from tests.commands import ROOT
from tests.e2e.conftest import Cluster, wait_until
from tests.meshnode.demos.app import examples
from tests.meshnode.demos.test_demos import start
from tests.meshnode.replication.conftest import Nodes, until

APP = "tests.meshnode.demos.app:app"
DEADLINE_S = 240.0  # reached on failure only
SLOW_S = 0.04  # of a run of the program


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        await nodes.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


def signed_in(data_dir: Path) -> Signed:
    """What the node with this directory signed in the one round it took part in."""
    (path,) = (data_dir / "demos").glob("*.signed")
    return Kept(path).read()


def check_consistent(ballots: list[Persist]) -> None:
    """One thing an iteration and phase, and never both a dummy and a finalization."""
    by_place = {(ballot.iteration, ballot.phase): ballot.value_digest for ballot in ballots}
    assert len(by_place) == len(ballots)
    dummies = {iteration for iteration, phase in by_place if phase == Phase.DUMMY}
    assert not dummies & {iteration for iteration, phase in by_place if phase == Phase.FINALIZE}


def launch(cluster: Cluster, number: int, *seeds: str, delay_s: float = 0.0) -> None:
    cluster.environment["DEMOS_DELAY_S"] = str(delay_s)
    data_dir = str(cluster.folder / f"n{number}")
    cluster.launch(f"node-{number}", *seeds, app=APP, arguments=("--workers", "1", "--data-dir", data_dir))


def test_a_validator_that_is_killed_after_it_committed_comes_back_and_shows_those_very_scores(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
    launch(cluster, 1, delay_s=SLOW_S)
    (first,) = cluster.collect()
    for number in (2, 3, 4):  # the second scores long before the others
        launch(cluster, number, first.seed, delay_s=0.0 if number == 2 else SLOW_S)
    second = cluster.collect()[0]
    wait_until(lambda: sum(one["state"] == "alive" for one in cluster.members(first)) == 4, "four nodes", 120)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(example) + "\n" for example in examples(16)))
    said = (tmp_path / "said").open("wb")
    command = [sys.executable, "-m", "meshnode", "demos", "select", "colour", str(data), "-k", "3", "--json"]
    command += ["--deadline", str(DEADLINE_S), "--node", first.http, "--out", str(tmp_path / "proof.json")]
    with (
        said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=cluster.environment, cwd=ROOT) as choosing,
    ):
        folder = cluster.folder / "n2" / "demos"
        wait_until(lambda: any(b'"reveal"' in path.read_bytes() for path in folder.glob("*.signed")), "its scores", 120)
        second.kill()
        cluster.nodes.remove(second)
        before = signed_in(cluster.folder / "n2")
        launch(cluster, 2, first.seed)
        cluster.collect()
        output, _ = choosing.communicate(timeout=DEADLINE_S + 30)
    chosen = json.loads(output)
    assert (chosen["decided"], chosen["reason"]) == ("mesh", ""), (tmp_path / "said").read_text()
    proof = msgspec.json.decode((tmp_path / "proof.json").read_bytes(), type=Proof)
    shown = {reveal.node_id: reveal for reveal in read(proof.value).reveals}
    assert shown[second.ready["node_id"]] == before.reveal
    after = signed_in(cluster.folder / "n2")
    assert (after.submission, after.reveal) == (before.submission, before.reveal)
    check_consistent(after.ballots)
    text = (tmp_path / "said").read_text()
    assert "candidates: " in text, "progress in the terminal"
    assert "decided by the mesh" in text


class Mute(Validator):
    """Scores, and takes no part in the vote: all the others are needed."""

    async def _vote(self, state: RoundState, signed: Signed) -> None:
        await self._wait(self._is_decided, self.end)


class Dying(Validator):
    """Signs its first vote, tells the test, and never gets to send it."""

    signed = asyncio.Event()

    async def say(self, peer: str, message: Message) -> None:
        if isinstance(message, Status):  # says where it is, and is not signed
            return
        Dying.signed.set()
        await asyncio.get_running_loop().create_future()


async def test_a_validator_that_dies_between_signing_and_sending_goes_on_with_what_it_signed(
    nodes: Nodes, tmp_path: Path
) -> None:
    Dying.signed.clear()
    one, _, mute, dying = await start(nodes, 4, tmp_path)
    mute.demos.make, dying.demos.make = Mute, Dying
    choosing = asyncio.get_running_loop().create_task(
        one.demos.select("colour", examples(12), k=2, deadline_s=DEADLINE_S)
    )
    try:
        async with asyncio.timeout(60):
            await Dying.signed.wait()
        await nodes.crash(dying.name)
        before = signed_in(tmp_path / "n4")
        assert before.ballots
        again = await nodes.start("n4", data_dir=tmp_path / "n4", app=load_app(APP), workers=1)
        assert again.node_id == dying.node_id
        chosen = await choosing
    finally:
        choosing.cancel()
    assert (chosen.decided, chosen.reason) == ("mesh", "")
    assert chosen.proof is not None
    signers = {signer for signer, _ in chosen.proof.certificate.signatures}
    assert signers == set(chosen.proof.validators) - {mute.node_id}
    await until(lambda: not list((tmp_path / "n4" / "demos").glob("*.task")), "the round to be over at n4")
    after = signed_in(tmp_path / "n4")
    assert after.ballots[: len(before.ballots)] == before.ballots
    assert len(after.ballots) > len(before.ballots)
    check_consistent(after.ballots)


def a_task(number: int, deadline_s: float = 60.0) -> Task:
    return Task(f"r{number:04}", "colour", "exact", pack([{"text": "x"}]), deadline_s)


def test_an_interrupted_round_is_gone_on_with_for_the_time_it_has_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.unfinished() == []
    journal.begin(a_task(1))
    journal.begin(a_task(2, deadline_s=-1.0))
    journal.begin(a_task(3))
    journal.end("r0003")
    (tmp_path / "torn.task").write_bytes(b"\x92")
    (left,) = Journal(tmp_path).unfinished()
    assert (left.round_id, left.train) == ("r0001", a_task(1).train)
    assert 0 < left.deadline_s <= 60
    assert [path.name for path in tmp_path.glob("*.task")] == ["r0001.task"], "what is over is gone"
    assert Journal(None).unfinished() == []


def test_a_finalization_keeps_what_it_answered_and_one_that_an_earlier_version_kept_is_read(tmp_path: Path) -> None:
    digest = bytes(range(32))
    answered = Certificate(1, Phase.NOTARIZE, digest, (("a", bytes(64)), ("b", bytes(64))))
    signed = [Persist(1, Phase.NOTARIZE, digest, b"value"), Persist(1, Phase.FINALIZE, digest, certificate=answered)]
    kept = Journal(tmp_path).kept("r1")
    for one in signed:
        kept.add(one)
    with (tmp_path / "r1.signed").open("ab") as file:
        file.write(b'["ballot",[2,3,"%s",""]]\n' % bytes(32).hex().encode())
    found = kept.read().ballots
    assert found == [*signed, Persist(2, Phase.DUMMY, bytes(32))]
    assert [(one.value, one.certificate) for one in found] == [(b"value", None), (b"", answered), (b"", None)]


def test_the_files_of_old_rounds_make_room_and_those_under_way_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(KEPT_ROUNDS + 5):
        journal.begin(a_task(number))
        journal.kept(f"r{number:04}").add(Persist(1, Phase.DUMMY, bytes(32)))
        if number != 1:
            journal.end(f"r{number:04}")
    journal.begin(a_task(9999))
    kept = {path.stem for path in tmp_path.glob("*.signed")}
    assert len(kept) == KEPT_ROUNDS + 1
    assert "r0001" in kept
    assert "r0000" not in kept
