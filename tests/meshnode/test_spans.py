"""Spans: one trace over nodes, nothing lost of its shape, bounded in number, and nothing without a span."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import meshnode
from channels.transport import FaultError, Incoming
from meshnode.errors import InvalidInput, UnknownMethod
from meshnode.evaluation.messages import RunTask
from meshnode.node.dispatch import OBSERVING, Dispatch
from meshnode.replication.messages import Propose
from meshnode.spans import HEADER, PASSED_BY, ROOTS_PER_S, SPANS_PER_S, Span, Spans, current, within
from tests.e2e.app import app

#: Commands without a span of their own, and why.
UNSPANNED = {
    "mesh.raft": "the protocol's own messages; the operation that causes them, `propose`, has one",
}


def named(spans: Spans, name: str) -> list[Span]:
    return [span for span in spans.ring if span.name == name]


async def test_a_span_within_another_is_its_child() -> None:
    spans = Spans("a")
    with spans.span("outer"):
        await asyncio.create_task(_inner(spans))
    inner, outer = spans.ring
    assert (inner.trace, inner.parent, outer.parent) == (outer.trace, outer.id, "")
    assert inner.seconds <= outer.seconds


async def _inner(spans: Spans) -> None:
    with spans.span("inner"):
        pass


async def test_a_task_that_outlives_its_span_begins_a_trace_of_its_own() -> None:
    spans = Spans("a")
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        assert current() is None
        with spans.span("late"):
            pass

    with spans.span("outer"):
        task = asyncio.create_task(late())
    over.set()
    await task
    assert named(spans, "late")[0].trace != named(spans, "outer")[0].trace


async def test_siblings_awaited_in_turn_have_the_same_parent() -> None:
    spans = Spans("a")
    with spans.span("outer") as outer:
        for _ in range(2):
            with spans.span("step"):
                pass
        assert current() is outer
    assert {span.parent for span in named(spans, "step")} == {named(spans, "outer")[0].id}


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidInput("x"), "app_error"), (ValueError("x"), "ValueError"), (asyncio.CancelledError(), "cancelled")],
)
def test_an_error_is_told_by_its_code(error: BaseException, code: str) -> None:
    spans = Spans("a")
    with pytest.raises(type(error)), spans.span("work"):
        raise error
    assert [span.error for span in spans.ring] == [InvalidInput("x").code if code == "app_error" else code]


def test_a_context_that_makes_no_sense_begins_a_new_trace() -> None:
    spans = Spans("a")
    for header in ("", "00", "00-12-34-01", "x" * 500):
        span = spans.begin("work", {HEADER: header})
        assert span is not None
        assert (len(span.trace), span.parent) == (32, "")


def test_a_flood_is_counted_but_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    spans = Spans("a", kept=SPANS_PER_S * 2)
    for _ in range(ROOTS_PER_S + 7):
        with spans.span("call"):
            pass
    assert (len(spans.ring), spans.skipped) == (ROOTS_PER_S, 7)
    context = {HEADER: f"00-{'a' * 32}-{'b' * 16}-01"}
    for _ in range(SPANS_PER_S):
        with spans.span("served", context):
            pass
    assert len(spans.ring) == SPANS_PER_S
    monkeypatch.setattr(time, "monotonic", lambda: 6.0)
    assert any(spans.begin("call") for _ in range(PASSED_BY + 1))


def test_the_ring_forgets_the_oldest() -> None:
    spans = Spans("a", kept=3)
    for number in range(5):
        with spans.span(str(number)):
            pass
    assert [span.name for span in spans.ring] == ["2", "3", "4"]


def test_no_spans_cost_nothing_and_break_nothing() -> None:
    with within(None, "work"):
        assert current() is None


async def test_a_listener_hears_each_span_until_it_stops() -> None:
    spans, heard = Spans("a"), list[str]()
    stop = spans.listen(lambda span: heard.append(span.name))
    with spans.span("one"):
        pass
    stop()
    with spans.span("two"):
        pass
    assert heard == ["one"]


@pytest.fixture
async def nodes() -> AsyncIterator[list[meshnode.Node]]:
    first = meshnode.Node(meshnode.Config(name="a", port=0, http=False, gossip_profile="local"), app=app)
    async with first:
        seeds = (first.ready["gossip"],)
        second = meshnode.Config(name="b", port=0, http=False, seeds=seeds, role="client", gossip_profile="local")
        async with meshnode.Node(second) as other:
            yield [first, other]


async def test_every_command_that_a_node_serves_has_a_span(nodes: list[meshnode.Node]) -> None:
    """Each is asked with a body that makes no sense: that it is refused, too, must be seen."""
    dispatch, spans = nodes[0].dispatch, nodes[0].spans
    assert spans is not None
    commands = [name for name in dispatch._responders if not name.startswith(OBSERVING) and name not in UNSPANNED]
    assert set(commands) >= {"echo", RunTask.command, Propose.command}
    for number, command in enumerate(sorted(commands)):
        trace = f"{number + 1:032x}"
        incoming = Incoming("inference", "peer", command, b"\xc1", asyncio.get_running_loop().time() + 5)
        incoming.context = {HEADER: f"00-{trace}-{'b' * 16}-01"}
        try:
            reply: Any = dispatch.handle(incoming)
            if inspect.isawaitable(reply):
                await reply
            elif hasattr(reply, "__aiter__"):
                await anext(reply)
        except (FaultError, StopAsyncIteration):
            pass
        found = [span for span in spans.ring if span.trace == trace and span.name == command]
        assert found, f"{command} left no span"
        assert found[0].parent == "b" * 16


async def test_one_evaluation_is_one_trace_over_nodes_and_workers(nodes: list[meshnode.Node]) -> None:
    worker, client = nodes
    examples = [{"text": text, "answer": text[::-1]} for text in ("ab", "cd", "ef")]
    result = await client.evaluate("reverse", examples, metric="mirrored", distributed=True)
    assert result.score == 100
    assert client.spans is not None
    assert worker.spans is not None
    root = named(client.spans, "evaluate reverse")[0]
    spans = [span for span in (*client.spans.ring, *worker.spans.ring) if span.trace == root.trace]
    by_id = {span.id: span for span in spans}
    runs = [span for span in spans if span.name == "run reverse"]
    assert len(runs) == 3
    for run in runs:
        task = by_id[run.parent]
        answered = by_id[task.parent]
        asked = by_id[answered.parent]
        assert task.name == "task reverse"
        assert (asked.node, answered.node, asked.name) == ("b", "a", answered.name)
        assert asked.parent == root.id
        assert run.attributes["worker"]


async def test_a_call_a_proposal_and_their_errors_have_spans(nodes: list[meshnode.Node]) -> None:
    server, client = nodes
    assert client.spans is not None
    assert server.spans is not None
    assert await client.call("a", "echo", 1) == 1
    asked = named(client.spans, "echo")[0]
    answered = named(server.spans, "echo")[0]
    assert (answered.trace, answered.parent) == (asked.trace, asked.id)
    with pytest.raises(meshnode.RemoteError):
        await client.call("a", "refuse", 1)
    assert named(server.spans, "refuse")[0].error == "ValueError"
    await client.variables.register("depth", int, 1)
    assert named(client.spans, "propose")
    with pytest.raises(UnknownMethod):
        await client.call("a", "missing", 1)
    assert named(client.spans, "missing")[0].error == UnknownMethod.code


async def test_spans_switched_off_leave_no_trace() -> None:
    config = meshnode.Config(name="a", port=0, http=False, spans=False)
    async with meshnode.Node(config, app=app) as node:
        assert await node.call("a", "echo", 1) == 1
        assert node.spans is None
        assert node.dispatch.spans is None


def test_what_looks_at_the_mesh_is_not_traced() -> None:
    dispatch = Dispatch()
    dispatch.spans = Spans("a")
    assert dispatch._begin("mesh.observe.look") is None
