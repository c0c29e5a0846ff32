from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.lm.nearest import Index, answer, count_tokens, embed, terms
from meshnode.lm.prompts import Message

SHOWN = [("Parse a JSON document.", "json"), ("Send a mail to a server.", "smtplib"), ("Walk a directory.", "os")]


def plain(question: str, shown: list[tuple[str, str]] = SHOWN) -> list[Message]:
    blocks = [f"Docstring: {text}\nModule: {label}" for text, label in shown]
    return [
        Message("system", "You name modules."),
        Message("user", "\n\n".join(["Name the module.", *blocks, f"Docstring: {question}\nModule:"])),
    ]


def chat_adapter(
    question: str, shown: list[tuple[str, str]], *, fields: tuple[str, ...] = ("answer",)
) -> list[Message]:
    """As dspy 3.4.1's ChatAdapter writes it (compared with its output when this was written)."""
    typed = "\n\n".join(f"[[ ## {name} ## ]]\n{{{name}}}" for name in fields)
    messages = [
        Message("system", f"Your input fields are:\n1. `docstring` (str):\n\n{typed}\n\n[[ ## completed ## ]]\n")
    ]
    for text, label in shown:
        said = "".join(f"[[ ## {name} ## ]]\n{label if name == 'answer' else 'Because.'}\n\n" for name in fields)
        messages.append(Message("user", f"[[ ## docstring ## ]]\n{text}"))
        messages.append(Message("assistant", f"{said}[[ ## completed ## ]]\n"))
    markers = ", then ".join(f"`[[ ## {name} ## ]]`" for name in fields)
    tail = (
        f"Respond with the corresponding output fields, starting with the field {markers}, "
        "and then ending with the marker for `[[ ## completed ## ]]`."
    )
    return [*messages, Message("user", f"[[ ## docstring ## ]]\n{question}\n\n{tail}")]


def test_the_nearest_demonstration_answers() -> None:
    assert answer(plain("Walks the directory tree below a directory")) == "os"
    assert answer(plain("How to parse JSON?")) == "json"


def test_without_demonstrations_or_a_word_in_common_it_says_unknown() -> None:
    assert answer(plain("Parse a JSON document.", [])) == "unknown"
    assert answer(plain("Quaternions rotate")) == "unknown"


@pytest.mark.parametrize(
    "messages", [[], [Message("user", "Hello!")], [Message("system", "a:\nb:")], [Message("user", "")]]
)
def test_a_prompt_in_neither_form_is_answered_with_unknown(messages: list[Message]) -> None:
    assert answer(messages) == "unknown"


def test_of_two_equally_near_the_first_answers() -> None:
    assert answer(plain("Open a file", [("Open a file", "first"), ("Open a file", "second")])) == "first"
    assert answer(plain("Open a file", [("Open a file", "second"), ("Open a file", "first")])) == "second"


def test_the_instruction_before_the_first_demonstration_is_not_part_of_it() -> None:
    messages = plain("name the module", [("Alpha beta.", "first"), ("Name gamma.", "second")])
    assert answer(messages) == "second"


def test_a_line_inside_the_question_that_looks_like_a_label_stays_text() -> None:
    shown = [("Alpha.\nReturns: a gadget", "first"), ("Beta.\nReturns: a widget", "second")]
    assert answer(plain("Gamma.\nReturns: the widget", shown)) == "second"


def test_white_space_at_the_end_of_the_prompt_and_labels_without_a_value_mean_nothing() -> None:
    text = "Docstring: alpha\nModule: first\n\nDocstring: beta\nModule: \n\nDocstring: alpha\nModule: \n\n"
    assert answer([Message("user", text)]) == "first"


def test_identifiers_count_whole_and_by_their_parts() -> None:
    assert terms("read_JSONLine") == ["read_jsonline", "read", "json", "line"]
    assert terms("HTTPServer2 os.path") == ["httpserver2", "http", "server", "2", "os", "path"]
    assert answer(plain("class JSONParser")) == "json"


def test_chat_adapter_prompt_is_answered_in_its_own_form() -> None:
    assert answer(chat_adapter("a mail", SHOWN)) == "[[ ## answer ## ]]\nsmtplib\n\n[[ ## completed ## ]]"


def test_reasoning_is_one_honest_sentence_and_never_copied() -> None:
    said = answer(chat_adapter("a mail", SHOWN, fields=("reasoning", "answer")))
    assert said == (
        "[[ ## reasoning ## ]]\nRepeating the nearest of 3 demonstrations, by words in common (cosine 0.612).\n\n"
        "[[ ## answer ## ]]\nsmtplib\n\n[[ ## completed ## ]]"
    )


def test_chat_adapter_without_demonstrations_says_unknown_and_why() -> None:
    said = answer(chat_adapter("a mail", [], fields=("reasoning", "answer")))
    assert said == (
        "[[ ## reasoning ## ]]\nNo demonstrations to go by.\n\n[[ ## answer ## ]]\nunknown\n\n[[ ## completed ## ]]"
    )


def test_a_demonstration_that_lacks_a_field_leaves_it_to_the_next_nearest() -> None:
    absent = [("Send a mail", "Not supplied for this particular example. "), ("Post some mail", "poplib")]
    assert answer(chat_adapter("Send a mail", absent)) == "[[ ## answer ## ]]\npoplib\n\n[[ ## completed ## ]]"


@pytest.mark.parametrize(
    ("note", "default"),
    [
        ("must be a single float value", "0.0"),
        ("must be a single int value", "0"),
        ("must be True or False", "False"),
        ("must exactly match (no extra characters) one of: yes; no", "yes"),
        ('must adhere to the JSON schema: {"type": "array", "items": {"type": "string"}}', "[]"),
        ('must adhere to the JSON schema: {"type": "object"}', "{}"),
        ("must adhere to the JSON schema: {cut off", "unknown"),
        ("must be one of: red; green", "red"),
    ],
)
def test_an_unknown_typed_field_gets_a_value_that_passes_as_its_type(note: str, default: str) -> None:
    messages = chat_adapter("anything", [])
    system = Message("system", f"[[ ## answer ## ]]\n{{answer}}        # note: the value you produce {note}")
    assert answer([system, *messages[1:]]) == f"[[ ## answer ## ]]\n{default}\n\n[[ ## completed ## ]]"


def test_likeness_is_the_cosine_of_tf_idf_vectors() -> None:
    likeness = Index(["a b", "a c c"]).likeness("a c")
    idf_a, idf_rare = 1.0, 1.0 + math.log(3 / 2)
    tf_c = 1.0 + math.log(2)
    question = math.hypot(idf_a, idf_rare)
    assert likeness[0] == pytest.approx(idf_a * idf_a / question / math.hypot(idf_a, idf_rare))
    assert likeness[1] == pytest.approx((idf_a**2 + tf_c * idf_rare**2) / question / math.hypot(idf_a, tf_c * idf_rare))


@given(st.text(max_size=80), st.lists(st.tuples(st.text(max_size=40), st.sampled_from(["x", "y"])), max_size=4))
def test_any_text_gets_an_answer_from_the_prompt_or_unknown(question: str, shown: list[tuple[str, str]]) -> None:
    labels = {"unknown", *(label for _, label in shown)}
    said = answer(chat_adapter(question, shown))
    assert said in {f"[[ ## answer ## ]]\n{label}\n\n[[ ## completed ## ]]" for label in labels}
    assert answer([Message("user", question)]) == "unknown"


@given(st.text(max_size=200))
def test_embeddings_are_unit_vectors_of_the_asked_size(text: str) -> None:
    vector = embed(text, size=32)
    assert len(vector) == 32
    assert math.hypot(*vector) == pytest.approx(1.0) if terms(text) and any(vector) else not any(vector)


def test_embeddings_of_like_texts_are_nearer_than_of_unlike_ones() -> None:
    def cosine(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(embed(one), embed(other), strict=True))

    assert cosine("open a text file", "open the file") > cosine("open a text file", "threads wait for locks") + 0.3


def test_tokens_are_four_characters_each_rounded_up() -> None:
    assert [count_tokens("x" * n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
