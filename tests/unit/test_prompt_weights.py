"""The grammar of weights in prompts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.errors import InvalidRequest
from blip_node.runtimes.diffusion.weighting import MAX_DEPTH, MAX_WEIGHT, Piece, parse

UP, DOWN = 1.1, round(1 / 1.1, 9)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", UP), (" cat", 1)]),
        ("((red))", [("red", 1.21)]),
        ("[bad]", [("bad", DOWN)]),
        ("([x])", [("x", 1)]),
        ("(red:1.3), [x:0.5]", [("red", 1.3), (", ", 1), ("x", 0.5)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("(x: .5 )", [("x", 0.5)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1)]),
        (r"(c\)d:2)", [("c)d", 2)]),
        (r"back\slash", [(r"back\slash", 1)]),
        ("never (closed", [("never ", 1), ("closed", UP)]),
        ("a ) b ]", [("a ) b ]", 1)]),
        ("(a:1.2]", [("a:1.2]", UP)]),
        ("http://x (a:b)", [("http://x ", 1), ("a:b", UP)]),
        ("(:1.2)", []),
        ("", []),
        ("(a:0)", [("a", 0)]),
    ],
)
def test_grammar(prompt: str, pieces: list[tuple[str, float]]) -> None:
    (found,) = parse(prompt).parts
    assert found == [Piece(text, weight) for text, weight in pieces]


def test_parts() -> None:
    assert parse("a BREAK b (BREAKER BREAK c)").parts == [
        [Piece("a ")],
        [Piece("b "), Piece("BREAKER ", UP)],
        [Piece("c", UP)],
    ]
    assert parse("break B BREAKS").plain == "break B BREAKS"


def test_what_counts_as_plain_and_explicit() -> None:
    assert parse(r"a \(b\)").plain == "a (b)"
    assert parse("(a:1)").plain == "a"
    assert parse("(a:1)").explicit
    assert parse("(a)").plain is None
    assert not parse("(a)").explicit
    assert parse("a BREAK b").plain is None


@pytest.mark.parametrize("prompt", ["(a:11)", "(a:-1)", "((a:9):9)", "(" * (MAX_DEPTH + 1)])
def test_out_of_bounds(prompt: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(prompt, "negative_prompt")
    assert caught.value.param == "negative_prompt"


_SIGNS = st.text(alphabet="ab ()[]:\\.12BREAK\n", max_size=60)


@given(_SIGNS)
def test_anything_is_read_or_refused(prompt: str) -> None:
    try:
        found = parse(prompt)
    except InvalidRequest:
        return
    for part in found.parts:
        assert all(piece.text and 0 <= piece.weight <= MAX_WEIGHT for piece in part)
        assert all(one.weight != other.weight for one, other in pairwise(part))
    # no letter is lost, and none is made
    letters = "".join(piece.text for part in found.parts for piece in part)
    wanted = prompt.replace("BREAK", "")
    for sign in "ab":
        assert letters.count(sign) == wanted.count(sign)


@given(st.text(max_size=40))
def test_escaped_text_is_itself(text: str) -> None:
    escaped = "".join(f"\\{sign}" if sign in "()[]\\" else sign for sign in text)
    if "BREAK" not in text:
        assert parse(escaped).plain == text


@given(
    st.lists(
        st.tuples(st.text(alphabet="abc ", min_size=1, max_size=5), st.integers(1, 99)),
        min_size=1,
        max_size=6,
    )
)
def test_weights_written_are_weights_read(pieces: list[tuple[str, int]]) -> None:
    prompt = "".join(f"({text}:{weight / 10})" for text, weight in pieces)
    (found,) = parse(prompt).parts
    spread = [(sign, piece.weight) for piece in found for sign in piece.text]
    assert spread == [(sign, weight / 10) for text, weight in pieces for sign in text]
