"""Variables: what is refused and in which words, versions, history, compare-and-set, who owns what."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from consensus.machines.values import (
    MAX_TEXT_LENGTH,
    Declaration,
    Refusal,
    RefusedByRule,
    Value,
    checked_declaration,
    checked_value,
)
from consensus.machines.variables import (
    MAX_TOTAL_BYTES,
    Change,
    Command,
    Compare,
    Compared,
    Register,
    Set,
    Sets,
    Unregister,
    Variables,
    Written,
    WrittenAll,
    packed,
)

TEMPERATURE = Declaration("temperature", "float", 0.7, ge=0.0, le=2.0)


def apply(variables: Variables, *commands: Command, first_index: int = 1) -> list[Any]:
    """The answers of commands at successive indexes; that `check` foretold each refusal is asserted on the way."""
    answers = []
    for index, command in enumerate(commands, first_index):
        foretold = variables.check(command)
        answer, change = variables.apply(index, index * 10, command)
        if isinstance(command, Set) and command.version:
            assert foretold is None  # the version is a matter of the moment of applying
        else:
            assert foretold == (answer if isinstance(answer, Refusal) else None)
        assert change is None or change.version == index
        answers.append(answer)
    return answers


@pytest.mark.parametrize(
    ("declaration", "value", "rule"),
    [
        (TEMPERATURE, -0.1, "ge"),
        (TEMPERATURE, 3.0, "le"),
        (TEMPERATURE, math.nan, "finite"),
        (TEMPERATURE, math.inf, "finite"),
        (TEMPERATURE, -math.inf, "finite"),
        (TEMPERATURE, True, "type"),
        (TEMPERATURE, "warm", "type"),
        (TEMPERATURE, None, "type"),
        (TEMPERATURE, 10**400, "type"),
        (Declaration("retries", "int", 0, ge=0, le=9), 10, "le"),
        (Declaration("retries", "int", 0, ge=0, le=9), -1, "ge"),
        (Declaration("retries", "int", 0), 1.0, "type"),
        (Declaration("retries", "int", 0), False, "type"),
        (Declaration("retries", "int", 0), 1 << 63, "type"),
        (Declaration("flag", "bool", False), 1, "type"),
        (Declaration("text", "str", "", max_length=3), "four", "max_length"),
        (Declaration("text", "str", ""), "x" * (MAX_TEXT_LENGTH + 1), "max_length"),
        (Declaration("text", "str", ""), "\ud800", "type"),
        (Declaration("text", "str", ""), b"bytes", "type"),
        (Declaration("mode", "choice", "a", choices=("a", "b")), "c", "choices"),
        (Declaration("mode", "choice", "a", choices=("a", "b")), 1, "type"),
        (Declaration("strategy", "module", "Predict", choices=("Predict", "ChainOfThought")), "ReAct", "choices"),
        (Declaration("strategy", "module", "Predict"), "not a name", "type"),
        (Declaration("strategy", "module", "Predict"), "a..b", "type"),
    ],
)
def test_a_bad_value_is_refused_naming_variable_and_rule(declaration: Declaration, value: Any, rule: str) -> None:
    with pytest.raises(RefusedByRule) as caught:
        checked_value(checked_declaration(declaration), value)
    refusal = caught.value.refusal
    assert (refusal.subject, refusal.rule) == (declaration.name, rule)
    assert declaration.name in str(caught.value)
    assert f"(rule: {rule})" in str(caught.value)


@pytest.mark.parametrize(
    ("declaration", "value", "stored"),
    [
        (TEMPERATURE, 0, 0.0),
        (TEMPERATURE, 2.0, 2.0),
        (Declaration("n", "int", 0), -(1 << 63), -(1 << 63)),
        (Declaration("n", "int", 0), (1 << 63) - 1, (1 << 63) - 1),
        (Declaration("flag", "bool", False), True, True),
        (Declaration("text", "str", "", max_length=3), "äöü", "äöü"),
        (Declaration("mode", "choice", "a", choices=("a", "")), "", ""),
        (Declaration("strategy", "module", "Predict"), "app.strategies.Fast", "app.strategies.Fast"),
    ],
)
def test_a_good_value_is_stored_in_the_variables_own_type(
    declaration: Declaration, value: Value, stored: Value
) -> None:
    found = checked_value(checked_declaration(declaration), value)
    assert (type(found), found) == (type(stored), stored)


@pytest.mark.parametrize(
    ("declaration", "rule"),
    [
        (Declaration("", "int", 0), "name"),
        (Declaration("with space", "int", 0), "name"),
        (Declaration("newline\n", "int", 0), "name"),
        (Declaration("n" * 129, "int", 0), "name"),
        (Declaration("a", "complex", 0), "declaration"),  # type: ignore[arg-type]  # from another language, say
        (Declaration("a", "int", 0, ge=5, le=4), "declaration"),
        (Declaration("a", "int", 0, ge=0.5), "declaration"),
        (Declaration("a", "float", 0.0, ge=math.nan), "declaration"),
        (Declaration("a", "str", "", ge=1), "declaration"),
        (Declaration("a", "int", 0, choices=("x",)), "declaration"),
        (Declaration("a", "choice", "x"), "declaration"),
        (Declaration("a", "choice", "x", choices=("x", "x")), "declaration"),
        (Declaration("a", "choice", "x", choices=tuple(map(str, range(300)))), "declaration"),
        (Declaration("a", "int", 0, max_length=3), "declaration"),
        (Declaration("a", "int", 0, history=0), "history"),
        (Declaration("a", "int", 0, history=1001), "history"),
        (Declaration("a", "int", 3, le=2), "le"),
        (Declaration("a", "choice", "z", choices=("x", "y")), "choices"),
        (Declaration("a", "int", 0, description="x" * 2000), "declaration"),
    ],
)
def test_a_bad_declaration_is_refused(declaration: Declaration, rule: str) -> None:
    (answer,) = apply(Variables(), Register(declaration))
    assert isinstance(answer, Refusal)
    assert answer.rule == rule


def test_the_same_declaration_again_is_no_error_and_changes_nothing() -> None:
    variables = Variables()
    written = Declaration("temperature", "float", 1, ge=0, le=2)  # ints, as people write them
    assert apply(
        variables,
        Register(written),
        Set("temperature", 0.3),
        Register(Declaration("temperature", "float", 1.0, ge=0.0, le=2.0)),
    ) == [Written(1), Written(2), Written(2)]
    known = variables.get("temperature")
    assert known is not None
    assert (known.value, known.version) == (0.3, 2)


def test_a_different_declaration_is_refused_naming_what_differs() -> None:
    variables = Variables()
    _, answer = apply(
        variables, Register(TEMPERATURE), Register(Declaration("temperature", "float", 0.7, ge=0.0, le=1.5, history=3))
    )
    assert (answer.subject, answer.rule) == ("temperature", "conflict")
    assert "le is 2.0, not 1.5" in answer.message
    assert "history is 16, not 3" in answer.message
    assert "initial" not in answer.message
    (answer,) = apply(variables, Register(Declaration("temperature", "int", 0)), first_index=3)
    assert "kind is 'float', not 'int'" in answer.message


def test_an_unknown_variable_is_refused_by_name() -> None:
    answers = apply(Variables(), Set("nothing", 1), Compare("nothing", 1, 2))
    assert {(answer.subject, answer.rule) for answer in answers} == {("nothing", "unknown")}


def test_a_version_is_the_index_of_its_entry_and_history_is_bounded() -> None:
    variables = Variables()
    apply(variables, Register(Declaration("n", "int", 0, history=3)))
    for index in range(5, 30, 5):
        metadata = {"why": str(index)}
        variables.apply(index, index * 10, Set("n", index, metadata, writer="node-a", wall_ms=index + 1000))
    known = variables.get("n")
    assert known is not None
    assert (known.value, known.version) == (25, 25)
    assert list(known.history) == [
        Change("n", "set", index, index, index - 5, {"why": str(index)}, "node-a", index + 1000, index * 10)
        for index in (15, 20, 25)
    ]


def test_compare_and_set_changes_only_what_is_as_expected() -> None:
    variables = Variables()
    assert apply(
        variables,
        Register(Declaration("retries", "int", 0, ge=0, le=9)),
        Compare("retries", 0, 1),
        Compare("retries", 0, 2),
        Set("retries", 5, version=2),
        Compare("retries", 5, 6),
    ) == [Written(1), Compared(True, 2, 1), Compared(False, 2, 1), Written(4), Compared(True, 5, 6)]
    refused = apply(
        variables, Compare("retries", 6, 10), Compare("retries", False, 1), Set("retries", 7, version=2), first_index=6
    )
    assert [answer.rule for answer in refused] == ["le", "type", "conflict"]
    assert "its version is 5, not 2" in refused[2].message


def test_a_refused_command_changes_nothing() -> None:
    variables = Variables()
    apply(variables, Register(TEMPERATURE))
    before = variables.dump()
    apply(
        variables,
        Set("temperature", 9.0),
        Set("temperature", 1.0, {"key": "x" * 2000}),
        Set("temperature", 1.0, {str(key): "" for key in range(17)}),
        Set("temperature", 1.0, writer="w" * 200),
        Compare("temperature", 0.7, math.nan),
        first_index=2,
    )
    assert variables.dump() == before


def test_a_removed_variable_is_gone_and_may_be_declared_anew() -> None:
    variables = Variables()
    assert apply(
        variables,
        Register(TEMPERATURE),
        Unregister("temperature"),
        Unregister("temperature"),
        Set("temperature", 1.0),
        Register(Declaration("temperature", "str", "warm")),
    )[1:] == [
        Written(2),
        Written(0),
        Refusal("temperature", "unknown", "temperature: no such variable is registered (rule: unknown)"),
        Written(5),
    ]


def test_watchers_are_told_each_change_once_and_what_it_follows() -> None:
    variables = Variables()
    commands: list[Command] = [
        Register(TEMPERATURE, writer="a"),
        Register(TEMPERATURE, writer="b"),
        Set("temperature", 1.0),
        Set("temperature", 3.0),
        Compare("temperature", 0.7, 2.0),
        Compare("temperature", 1.0, 1.5),
        Unregister("temperature"),
    ]
    changes = [variables.apply(index, 0, command)[1] for index, command in enumerate(commands, 1)]
    assert [(c.what, c.value, c.version, c.before) for c in changes if c is not None] == [
        ("registered", 0.7, 1, 0),
        ("set", 1.0, 3, 1),
        ("set", 1.5, 6, 3),
        ("removed", 1.5, 7, 6),
    ]
    assert [change is None for change in changes] == [False, True, False, True, True, False, False]


def test_text_is_bounded_in_all_and_what_history_drops_counts_no_more() -> None:
    variables = Variables()
    text = "x" * MAX_TEXT_LENGTH
    apply(variables, Register(Declaration("small", "str", "", history=2)))
    for index in range(2, 2000):  # far more than fits, but only two are kept
        assert variables.apply(index, 0, Set("small", text))[0] == Written(index)
    for name in ("full", "rest"):
        apply(variables, Register(Declaration(name, "str", "", history=1000)), first_index=3000 + len(variables))
    for index in range(4000, 5000):
        assert variables.apply(index, 0, Set("full", text))[0] == Written(index)
    left = MAX_TOTAL_BYTES // MAX_TEXT_LENGTH - 1000 - 2
    assert left > 0
    answers = apply(variables, *[Set("rest", text)] * (left + 1), first_index=5000)
    assert answers[:left] == [Written(5000 + at) for at in range(left)]
    assert (answers[left].subject, answers[left].rule) == ("rest", "limit")
    assert apply(variables, Set("full", text), first_index=6000) == [Written(6000)]  # as much goes as comes
    apply(variables, Unregister("full"), Unregister("rest"), first_index=6001)
    assert apply(variables, Set("small", text, {"k": "v"}), first_index=7000) == [Written(7000)]
    copy = Variables()
    copy.restore(variables.dump())
    assert copy._bytes == variables._bytes == 2 * MAX_TEXT_LENGTH + 2


PLAIN: list[list[Value]] = [
    [f"text {n}" for n in range(9)],
    ["", "x" * 40, "a", "b", "x" * 40, "c"],
    ["a", "é", "b"],
    ["x" * 41, "a"],
    [0.5, 1.0, 0.0, 2.0],
    [0.5, math.nan, 1.0],
    [0.5, 2.5, 1.0],
    [0.5, 1, 0.25],
    [1, 2, 3],
    ["a", 0.5],
]


@pytest.mark.parametrize("values", PLAIN)
@pytest.mark.parametrize("odd", [{}, {"name": "text"}, {"writer": "ü"}, {"writer": "another"}])
@pytest.mark.parametrize("name", ["text", "temperature", "nothing"])
@pytest.mark.parametrize("is_watched", [True, False])
def test_sets_by_columns_do_what_they_do_one_by_one(
    values: list[Value], odd: dict[str, Any], name: str, is_watched: bool
) -> None:
    alone, together = Variables(), Variables()
    for variables in (alone, together):
        text = Declaration("text", "str", "first", max_length=40, history=4)
        assert apply(variables, Register(TEMPERATURE), Register(text)) == [Written(1), Written(2)]
    commands = [Set(name, value, {}, "me", number) for number, value in enumerate(values)]
    commands[1] = msgspec.structs.replace(commands[1], **odd)
    sets = packed(commands)
    assert sets.rows() == commands
    for begin in range(3, 90, len(commands)):
        expected = [alone.apply(version, 7, command) for version, command in enumerate(commands, begin)]
        applied = together.apply_sets(begin, 7, sets, is_watched=is_watched)
        assert applied is not None
        answers, changes = applied
        if isinstance(answers, WrittenAll):
            answers = list(map(Written, range(answers.first, answers.first + answers.count)))
        assert answers == [answer for answer, _ in expected]
        wanted = [change for _, change in expected if change is not None]
        assert changes == (wanted if is_watched else wanted[len(wanted) - len(changes) :])
        assert is_watched or len(changes) >= min(len(wanted), 4)
        assert together.dump() == alone.dump()
        restored = Variables()
        restored.restore(together.dump())
        assert together._bytes == alone._bytes == restored._bytes


def test_columns_of_different_length_change_nothing() -> None:
    variables = Variables()
    assert apply(variables, Register(TEMPERATURE)) == [Written(1)]
    for sets in (
        Sets("temperature", [0.5, 0.6], "me", [1]),
        Sets(["temperature"], [0.5, 0.6], "me", [1, 2]),
        Sets("temperature", [0.5], ["me", "you"], [1]),
        Sets("nothing", [], "me", [1]),
    ):
        assert sets.rows() is None
        assert variables.apply_sets(2, 0, sets) is None
    assert [each.version for each in variables] == [1]
