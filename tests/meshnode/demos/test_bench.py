"""What a validator's own runs come to: by a stand-in for the mesh, whose workers do as a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from consensus.bft.messages import Status
from consensus.selection.candidates import Candidate, merge
from consensus.selection.scores import SCALE
from meshnode.demos.bench import Bench
from meshnode.demos.journal import Kept
from meshnode.demos.origin import written
from meshnode.demos.task import BOOTSTRAP, BOOTSTRAPPED, Task
from meshnode.demos.trace import steps_of
from meshnode.demos.validator import UNHEARD, Validator
from meshnode.errors import Overloaded, WorkerCrashed
from meshnode.evaluation.messages import RunTask, TaskReply
from meshnode.mesh import Member
from meshnode.values import pack, unpack

Answer = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]  # (example, state) -> prediction with its score


class Workers:
    """A mesh of one node; `busy`: how often each run is refused first."""

    def __init__(self, answer: Answer, busy: int = 0) -> None:
        self.me = Member(name="n1", node_id="n1", state="alive", address="", slots=1)
        self._answer = answer
        self._busy = busy
        self.asked = Counter[bytes]()
        self.states: list[Mapping[str, Any]] = []

    async def request(self, _peer: str, message: RunTask, *, timeout_s: float) -> TaskReply:
        assert timeout_s > message.timeout_s
        key = message.example + (message.state or b"")
        self.asked[key] += 1
        if self.asked[key] <= self._busy:
            raise Overloaded("no slot", retry_after_s=0.001)
        state = msgspec.json.decode(message.state) if message.state else {}
        self.states.append(state)
        prediction, score = self._answer(unpack(message.example), state)
        return TaskReply(pack(prediction), score if message.metric is not None else None)


def bench(workers: Workers, count: int = 12, **options: Any) -> Bench:
    examples = [{"text": f"t{number}", "answer": f"a{number}"} for number in range(count)]
    return Bench(workers, Task("r1", "p", "exact", pack(examples), 60.0, **options))  # type: ignore[arg-type] # a stand-in


def plain(number: int) -> bytes:
    """An example of the training set as a demo."""
    return written({"text": f"t{number}", "answer": f"a{number}"})


def soon(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def right(example: Mapping[str, Any], _state: Mapping[str, Any]) -> Any:
    return {"answer": example["answer"], "why": "so"}, 1.0


async def test_a_busy_worker_is_asked_again_and_is_no_bad_score() -> None:
    workers = Workers(right, busy=2)
    one = bench(workers)
    merged = merge([Candidate(plain(0), b"[]", "n1")])
    assert await one.scores(merged, 2, soon()) == (SCALE,)
    assert set(workers.asked.values()) == {3}


async def test_a_run_that_did_not_end_in_time_does_not_count_and_one_that_failed_does() -> None:
    def first_only(example: Mapping[str, Any], _state: Mapping[str, Any]) -> Any:
        if example["text"] == late:
            raise Overloaded("no slot, ever")
        if example["text"] == failing:
            raise WorkerCrashed("gone")
        return {}, 1.0

    one = bench(Workers(first_only))
    late, failing, _ = (one.examples[place]["text"] for place in one.held_out)
    merged = merge([Candidate(plain(0), b"[]", "n1")])
    assert await one.scores(merged, 2, soon(0.5)) == (SCALE // 2,)


async def test_a_demo_is_scored_beside_others_by_what_it_adds() -> None:
    def knows(_example: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
        assert len(state["demos"]) == 3
        return {}, 0.5 + 0.5 * any(demo["text"] == "t0" for demo in state["demos"])

    merged = merge([Candidate(plain(number), b"[]", "n1") for number in range(9)])
    scores = await bench(Workers(knows)).scores(merged, 3, soon())
    best = next(place for place, one in enumerate(merged) if one.demo == plain(0))
    assert scores[best] == SCALE
    assert all(SCALE // 2 <= score < SCALE for place, score in enumerate(scores) if place != best)


async def test_validators_of_one_program_come_to_the_same_scores() -> None:
    def some(example: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
        return {}, sum(int(one["text"][1:]) for one in (example, *state["demos"])) % 7 / 8

    merged = merge([Candidate(plain(number), b"[]", "n1") for number in range(10)])
    first, second = [await bench(Workers(some)).scores(merged, 4, soon()) for _ in range(2)]
    assert first == second
    assert len(set(first)) > 1


async def test_what_contradicts_the_training_set_scores_nothing_and_is_shown_to_no_program() -> None:
    lie = b'{"answer":"a1","text":"t0"}'
    more = b'{"answer":"a2","text":"t2","why":"so"}'
    workers = Workers(right)
    merged = merge([Candidate(demo, b"[]", "n1") for demo in (lie, more, plain(3))])
    scores = await bench(workers).scores(merged, 2, soon())
    assert [score == 0 for score in scores] == [one.demo == lie for one in merged]
    assert all({"answer": "a1", "text": "t0"} not in state["demos"] for state in workers.states)


async def test_runs_that_went_well_come_first_and_plain_examples_fill_up() -> None:
    def some(example: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
        if BOOTSTRAP in state:
            return {}, 0.0  # a plain program does not know what that is
        if example["text"] == "t1":
            raise WorkerCrashed("gone")
        return {"why": "so"}, 0.5 if example["text"] == "t2" else 0.4

    found = await bench(Workers(some)).demos([1, 2, 3], 3, "seed", soon())
    texts = [msgspec.json.decode(demo) for demo, _ in found]
    assert texts[0] == {"text": "t2", "answer": "a2", "why": "so"}
    (step,) = steps_of(found[0][1])
    assert step == {"inputs": {"text": "t2", "answer": "a2"}, "outputs": {"why": "so"}, "score": 0.5}
    assert [steps_of(trace) for _, trace in found[1:]] == [[], []], "no run"
    assert sorted(text["text"] for text in texts[1:]) == ["t1", "t3"]
    assert all("why" not in text for text in texts[1:])


async def test_a_dspy_program_makes_its_own_demos_from_the_state_it_is_given() -> None:
    def dspy_like(example: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
        wanted = state[BOOTSTRAP]
        assert (wanted["metric"], wanted["threshold"]) == ("exact", None)
        assert len(wanted["labelled"]) == 2
        good = example["text"] != "t3"
        return {BOOTSTRAPPED: {"step": dict(example)} if good else None}, None

    workers = Workers(dspy_like)
    one = bench(workers, threshold=None, labelled=2, state=b'{"step":{"signature":"s"}}')
    found = await one.demos([1, 2, 3], 3, "seed", soon())
    texts = [msgspec.json.decode(demo) for demo, _ in found]
    assert sorted(text["step"]["text"] for text in texts[:2]) == ["t1", "t2"]
    assert texts[2] == {"text": "t3", "answer": "a3"}
    assert all(state["step"] == {"signature": "s"} for state in workers.states)
    assert len(workers.states) == 3, "each example once"


class Deaf(Workers):
    """Nobody acknowledges anything."""

    casts = 0

    def __init__(self) -> None:
        super().__init__(right)
        self.other = asyncio.Event()  # the second peer was sent to

    async def cast(self, peer: str, _message: Any) -> None:
        self.casts += 1
        if peer == "other":
            self.other.set()
        await asyncio.get_running_loop().create_future()


async def test_a_vote_waits_for_no_peer_that_does_not_acknowledge_and_keeps_few_messages_for_it() -> None:
    mesh = Deaf()
    task = Task("r1", "p", "exact", pack([{"text": "t"}]), 60.0)
    validator = Validator(mesh, task, lambda _: b"", Kept(None))  # type: ignore[arg-type] # a stand-in
    async with asyncio.timeout(30):
        for number in range(UNHEARD + 10):
            await validator.say("deaf", Status(number))
        await validator.say("other", Status(1))
        await mesh.other.wait()
    assert mesh.casts == UNHEARD + 1
    for saying in list(validator._saying):
        saying.cancel()
    await asyncio.gather(*validator._saying, return_exceptions=True)
