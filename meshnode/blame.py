"""Whose fault an exception is: the user's own file and line, and a traceback without our frames in it."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType

_OURS = str(Path(__file__).parent) + os.sep
_STANDARD_LIBRARY = str(Path(os.__file__).parent) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def where(error: BaseException) -> str:
    """ "file, line n" of the user's code that raised: the innermost frame that is not ours nor a library's.

    Empty if there is none.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in _frames(error.__traceback__)]
    written = [place for place in frames if not _is_library(place[0])]
    for file, line in reversed(written or frames):
        return f"{file}, line {line}"
    return ""


def one_line(error: BaseException) -> str:
    """The exception's type and text on one line, without a place."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def user_traceback(error: BaseException, *, limit: int = 50) -> str:
    """The traceback as Python prints it, without our own frames; at most `limit` frames for each cause."""
    report = traceback.TracebackException.from_exception(error, limit=-limit)
    seen: set[int] = set()
    todo: list[traceback.TracebackException | None] = [report]
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if not _is_ours(frame.filename)])
        todo += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(report.format())


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(trace) if not _is_ours(frame.filename)]


def _is_ours(file: str) -> bool:
    return file.startswith((_OURS, "<frozen importlib"))


def _is_library(file: str) -> bool:
    return file.startswith((_STANDARD_LIBRARY, "<frozen ")) or any(part in file for part in _INSTALLED)
