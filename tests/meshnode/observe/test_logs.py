"""What the log says, and what it never says."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from meshnode import App, Config, Node
from meshnode.observe import logs
from meshnode.observe.logs import configure_logs, logging_of
from meshnode.redaction import HIDDEN
from meshnode.spans import Spans


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logged(level: str = "info", **options: Any) -> tuple[io.StringIO, Any]:
    out = io.StringIO()
    configure_logs(level, stream=out, **options)
    return out, structlog.get_logger()


def one(out: io.StringIO) -> dict[str, Any]:
    (line,) = out.getvalue().splitlines()
    value: dict[str, Any] = json.loads(line)
    return value


def test_without_a_terminal_each_line_is_one_json_object() -> None:
    out, log = logged()
    log.info("serving", node="a", term=3)
    event = one(out)
    assert (event["event"], event["level"], event["node"], event["term"]) == ("serving", "info", "a", 3)
    assert event["timestamp"].endswith("Z")


def test_in_a_terminal_lines_are_for_people() -> None:
    out = Terminal()
    configure_logs("info", stream=out)
    structlog.get_logger().warning("seed unreachable", seed="host-a:7700")
    assert "seed unreachable" in out.getvalue()
    assert not out.getvalue().startswith("{")
    assert HIDDEN not in out.getvalue()


def test_lines_below_the_level_are_dropped() -> None:
    out, log = logged("warning")
    log.info("chatter")
    logging.getLogger("uvicorn.error").info("chatter")
    assert out.getvalue() == ""


def test_the_standard_librarys_records_take_the_same_way() -> None:
    out, _ = logged()
    logging.getLogger("asyncio").error("slow: %s", "Bearer abc.def-ghi")
    event = one(out)
    assert (event["level"], event["logger"]) == ("error", "asyncio")
    assert event["event"].startswith("slow: ")
    assert "abc" not in event["event"]  # hidden by us, or before by a library that was imported meanwhile


@pytest.mark.parametrize(
    "name", ["token", "TOKEN", "lm_token", "api_key", "apikey", "db.password", "authorization", "secrets"]
)
def test_values_named_like_secrets_are_hidden(name: str) -> None:
    out, log = logged()
    log.info("x", **{name: "value-1"}, nested={"deeper": [{name: "value-2"}]})
    assert "value" not in out.getvalue()


def test_counted_tokens_are_no_secret() -> None:
    out, log = logged()
    log.info("x", prompt_tokens=812, completion_tokens="value-1")
    assert (one(out)["prompt_tokens"], one(out)["completion_tokens"]) == (812, HIDDEN)


@pytest.mark.parametrize("name", ["tokens_used", "key", "monkey", "keyboard", "node", "secretary"])
def test_other_names_are_shown(name: str) -> None:
    out, log = logged()
    log.info("x", **{name: "value-1"})
    assert one(out)[name] == "value-1"


@pytest.mark.parametrize(
    "text", ["Authorization: bearer s3cr3t-x", "https://user:s3cr3t-x@host/p", "key sk-s3cr3t-x was refused"]
)
def test_secrets_inside_texts_are_hidden(text: str) -> None:
    out, log = logged()
    log.info(text, detail=text, error=ValueError(text), parts=(text,))
    assert "s3cr3t" not in out.getvalue()
    assert out.getvalue().count(HIDDEN) == 4


def test_the_environments_secrets_are_hidden_wherever_they_turn_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_KEY", "plain-looking-value")
    monkeypatch.setenv("SHORT_TOKEN", "none")
    out, log = logged()
    try:
        raise ValueError("refused plain-looking-value, none other")
    except ValueError:
        log.exception("plain-looking-value failed", url="http://x/?q=plain-looking-value")
    assert "plain-looking" not in out.getvalue()
    event = one(out)
    assert "Traceback" in event["exception"]
    assert "none other" in event["exception"]


async def test_a_record_says_node_term_channel_and_trace_where_there_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_in_this_process", [])  # nodes that other tests crashed never said that they ended
    app = App()

    @app.handler("grumble")
    async def grumble(args: Any, context: Any) -> None:
        logging.getLogger("an.app").warning("not again")

    out, log = logged()
    async with Node(Config(port=0, name="host-a", http=False), app=app) as node:
        async with asyncio.timeout(60):
            while node.status()["leader"] is None:  # noqa: ASYNC110 - elections have no event for outsiders
                await asyncio.sleep(0.01)
        await node.call("host-a", "grumble")
    log.info("outside")
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    joined, grumbled, outside = (
        next(record for record in records if record["event"] == event) for event in ("joined", "not again", "outside")
    )
    assert joined["node"] == "host-a"
    assert (grumbled["node"], grumbled["channel"], grumbled["logger"]) == ("host-a", "inference", "an.app")
    assert grumbled["term"] >= 1
    assert node.spans is not None
    assert grumbled["trace"] in {span.trace for span in node.spans.ring if span.name == "grumble"}
    assert {"node", "term", "channel", "trace"}.isdisjoint(outside)


def test_what_a_record_says_itself_stays_and_a_span_is_named() -> None:
    out, log = logged()
    spans = Spans("host-a")
    with logging_of(lambda operation: {"node": "host-a", "term": 3, "operation": operation}), spans.span("evaluate qa"):
        log.info("configuration", term=7)
    event, span = one(out), spans.ring[0]
    assert (event["node"], event["term"], event["operation"]) == ("host-a", 7, "evaluate qa")
    assert (event["trace"], event["span"]) == (span.trace, span.id)
