"""Two prompt forms the embedded model reads: plain few-shot text, and what DSPy's ChatAdapter writes.

Plain: everything stands in the last user message. Its last line is a label with nothing behind it: that is what is
asked for. Each earlier line with that label and a value ends one demonstration.

    Name the module.                        <- whatever precedes the first input label is not read

    Docstring: Parse a JSON document.       <- the input label is the one the question starts with
    Module: json

    Docstring: Send a mail.
    Module:                                 <- the question; the answer is one line, the label alone

ChatAdapter (dspy 3.x, adapters/chat_adapter.py): demonstrations are pairs of a user and an assistant message made of
`[[ ## field ## ]]` blocks; the last user message ends with "Respond with the corresponding output fields, starting
with the field `[[ ## answer ## ]]`, then …", which names what is asked for. The answer has the same blocks and ends
with `[[ ## completed ## ]]`. Output types are read from the system message's "note: the value you produce …".

Not read: DSPy's JSONAdapter and XMLAdapter, tool calls, images. Such a prompt counts as a plain one without a question.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Literal

UNKNOWN = "unknown"

_FIELD = re.compile(r"^\[\[ ## (\w+) ## \]\][ \t]*\n?", re.MULTILINE)
_MARKER = re.compile(r"`\[\[ ## (\w+) ## \]\]`")
_TAIL = "Respond with the corresponding output fields, starting with the field "
_NOTE = re.compile(r"^\{(\w+)\}[ \t]+# note: the value you produce (.+)$", re.MULTILINE)
_ABSENT = "Not supplied for this particular example."
_REASONING = frozenset({"reasoning", "rationale"})
_ASKED = re.compile(r"([A-Z][\w -]{0,39}:)[ \t]*")
_LABEL = re.compile(r"[A-Z][\w -]{0,39}:")


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message: its role ("system", "user", "assistant", …) and its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One solved example of the prompt: the question's text, and each output field's value that was supplied."""

    question: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a prompt asks. `defaults` holds, for each output field in order, what to say when nothing is known."""

    form: Literal["plain", "chat_adapter"]
    demonstrations: tuple[Demonstration, ...] = ()
    question: str = ""
    defaults: Mapping[str, str] = field(default_factory=lambda: {"": UNKNOWN})


def read(messages: Sequence[Message]) -> Prompt:
    """Find the demonstrations and the question; a chat in neither form is a question without demonstrations."""
    asked = next((index for index in reversed(range(len(messages))) if messages[index].role == "user"), None)
    if asked is None:
        return Prompt("plain")
    body, tail_found, tail = messages[asked].text.rpartition(_TAIL)
    outputs = [name for name in _MARKER.findall(tail) if name != "completed"] if tail_found else []
    if outputs:
        return _read_chat_adapter(messages[:asked], body, outputs)
    return _read_plain(messages[asked].text)


def write(prompt: Prompt, answers: Mapping[str, str], why: str) -> str:
    """The answer's text in the prompt's own form; `why` is one sentence and fills reasoning fields."""
    if prompt.form == "plain":
        return next(iter(answers.values()))
    values = {name: why if name in _REASONING else value for name, value in answers.items()}
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in (values | {"completed": ""}).items()).rstrip()


def _read_chat_adapter(before: Sequence[Message], body: str, outputs: list[str]) -> Prompt:
    notes = {name: note for message in before if message.role == "system" for name, note in _NOTE.findall(message.text)}
    demonstrations = []
    for user, assistant in pairwise(before):
        if user.role == "user" and assistant.role == "assistant":
            answers = {name: value for name, value in _blocks(assistant.text).items() if name in outputs}
            if answers:
                demonstrations.append(Demonstration(_joined(user.text), answers))
    return Prompt(
        "chat_adapter", tuple(demonstrations), _joined(body), {name: _default(notes.get(name, "")) for name in outputs}
    )


def _blocks(text: str) -> dict[str, str]:
    _, *parts = _FIELD.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {name: value for name, raw in pairs if (value := raw.strip()) and value != _ABSENT and name != "completed"}


def _joined(text: str) -> str:
    return "\n".join(_blocks(text).values())


def _default(note: str) -> str:
    """A value that passes as the type a note demands (the notes: dspy, adapters/utils.py, translate_field_type)."""
    rule, _, rest = note.partition(": ")
    match rule.split("(")[0].strip():
        case "must be True or False":
            return "False"
        case "must be a single int value":
            return "0"
        case "must be a single float value":
            return "0.0"
        case "must be one of" | "must exactly match":
            return rest.split(";")[0].strip()
        case "must adhere to the JSON schema":
            with contextlib.suppress(ValueError, AttributeError):
                return {"array": "[]", "object": "{}"}.get(json.loads(rest).get("type"), UNKNOWN)
    return UNKNOWN


def _read_plain(text: str) -> Prompt:
    body, _, last_line = f"\n{text.rstrip()}".rpartition("\n")
    asked = _ASKED.fullmatch(last_line)
    if asked is None:
        return Prompt("plain", question=text)
    output = asked[1]
    shown_end = _end_of_solved(body, output)
    question = body[shown_end:].strip()
    first = _LABEL.match(question)
    label = first[0] if first else ""
    return Prompt("plain", _demonstrations(body[:shown_end], label, output), question.removeprefix(label).strip())


def _end_of_solved(body: str, output: str) -> int:
    """Where the last line ends that has the output label and a value; 0 if there is none."""
    start = len(body)
    while (start := body.rfind(f"\n{output}", 0, start)) != -1:
        line = body[start + 1 :].partition("\n")[0]
        if line.removeprefix(output).strip():
            return start + 1 + len(line)
    return 0


@lru_cache(maxsize=64)  # evaluation shows the same demonstrations with every question
def _demonstrations(shown: str, label: str, output: str) -> tuple[Demonstration, ...]:
    """What lies before each line with the output label, from the input label on, and that line's value."""
    # What precedes the first input label is the instruction; its words are not the demonstration's.
    begin = re.compile(rf"^{re.escape(label)}", re.MULTILINE)
    start = 0
    found = []
    for solved in re.finditer(rf"^{re.escape(output)}[ \t]*(\S.*)$", shown, re.MULTILINE):
        block = shown[start : solved.start()]
        begins = begin.search(block) if label else None
        found.append(Demonstration(block[begins.end() if begins else 0 :].strip(), {"": solved[1].strip()}))
        start = solved.end()
    return tuple(found)
