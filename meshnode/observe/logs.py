"""Structured logs on stderr: one JSON object a line, or readable lines in a terminal. Secrets never reach either.

Set up once, by the process that starts a node. Records of the standard library (uvicorn, asyncio) take the same way.
Every record says where it was made, as far as there is such a thing: the node, Raft's term there, and within an
operation its trace and span ids (`meshnode tap --filter TRACE` finds the rest of it) and the channel it came over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import structlog

from meshnode.redaction import Redaction, secrets_of
from meshnode.spans import current

LogFormat = Literal["auto", "json", "text"]
Where = Callable[[str | None], Mapping[str, Any]]

_where: ContextVar[Where | None] = ContextVar("where", default=None)
_in_this_process: list[Where] = []


def configure_logs(level: str, *, form: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr) from `level` on. "auto": readable in a terminal, JSON elsewhere."""
    out = stream or sys.stderr
    readable = form == "text" or (form == "auto" and out.isatty())
    render: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if readable
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            say_where,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable),
            Redacted(),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = _ToStructlog()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def log_as_a_library() -> None:
    """Hand events to the standard library's `logging`, unless structlog was set up already.

    A program that only imports meshnode decides itself what it shows: warnings, if it does nothing.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            say_where,
            Redacted(),
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


@contextlib.contextmanager
def logging_of(where: Where) -> Iterator[None]:
    """What is logged in this block, and by all tasks and callbacks that begin in it, carries what `where` tells.

    where(operation): is asked at each record; the operation is the name of the span that is open, if one is.
    """
    token = _where.set(where)
    try:
        yield
    finally:
        _where.reset(token)


def the_node_here(where: Where) -> Callable[[], None]:
    """Until what is returned is called: while only one node runs in this process, all else that is logged is its."""
    _in_this_process.append(where)
    return lambda: _in_this_process.remove(where)


def say_where(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the node's words, and the trace; what the record says itself stays."""
    del logger, method
    where, span = _where.get(), current()
    if where is None and len(_in_this_process) == 1:
        where = _in_this_process[0]
    if where is not None:
        for name, value in where(span.name if span is not None else None).items():
            event.setdefault(name, value)
    if span is not None:
        event.setdefault("trace", span.trace)
        event.setdefault("span", span.id)
    return event


class Redacted:
    """A structlog processor that hides secrets in all that a record says."""

    def __init__(self) -> None:
        self._redaction = Redaction(secrets_of(os.environ))

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Redact one event."""
        del logger, method
        for name, value in event.items():
            if name != "exc_info":
                event[name] = self._redaction.value(name, value)
        # Formatted here, so that a secret in an exception's text or a traceback is seen, too.
        if event.get("exc_info"):
            structlog.processors.format_exc_info(None, "", event)
            event["exception"] = self._redaction.text(str(event.get("exception", "")))
        return event


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, under its logger's name."""
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)
