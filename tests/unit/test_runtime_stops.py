"""Stop sequences in text that arrives in pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blip_node.runtimes.decoding.stops import StopMatcher

# two letters, so that matches, near misses and overlaps are the rule
TEXT = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The first match to end, the longest of those that end together: found the slow way."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


def pieces(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(borders)]


@given(TEXT, STOPS, st.lists(st.integers(0, 1000), max_size=10))
def test_any_cutting_gives_the_text_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown, stopped = "", False
    for piece in pieces(text, cuts):
        released, stopped = matcher.push(piece)
        shown += released
        if stopped:
            break
    else:
        shown += matcher.flush()
    assert (shown, stopped) == expected(text, stops)


@given(TEXT, STOPS)
def test_what_is_held_back_is_the_longest_possible_beginning_of_a_stop(
    text: str, stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for end, char in enumerate(text, 1):
        released, stopped = matcher.push(char)
        shown += released
        if stopped:
            return
        held = max(
            (n for stop in stops for n in range(len(stop)) if text[:end].endswith(stop[:n])),
            default=0,
        )
        assert shown == text[: end - held]


def test_without_stops_everything_passes_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("any text") == ("any text", False)
    assert matcher.flush() == ""


def test_a_stop_across_three_pieces() -> None:
    matcher = StopMatcher(["\n\nHuman:"])
    assert matcher.push("Hello.\n") == ("Hello.", False)
    assert matcher.push("\nHu") == ("", False)
    assert matcher.push("man: hi") == ("", True)


def test_a_near_miss_is_given_back() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a <en") == ("a ", False)
    assert matcher.push("try") == ("<entry", False)
    assert matcher.push(" <e") == (" ", False)
    assert matcher.flush() == "<e"
    assert matcher.push("nd>") == ("nd>", False)  # flushed text is gone for good


def test_a_long_stop_of_one_letter_takes_linear_time() -> None:
    stop = "a" * 200_000 + "b"
    matcher = StopMatcher([stop])
    assert matcher.push("a" * 300_000) == ("a" * 100_000, False)
    assert matcher.push("b") == ("", True)
