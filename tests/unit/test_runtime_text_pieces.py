"""Vocabulary, detokenizer, prompt and sequence: the parts of decoding that need no model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from blip.errors import ContextTooLong, InvalidRequest
from blip.kinds.text import Delta, Finish
from blip_node.runtimes.decoding.detokenizer import MAX_HELD, Detokenizer
from blip_node.runtimes.decoding.prompt import room
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.stops import StopMatcher
from blip_node.runtimes.decoding.vocabulary import Vocabulary

TINY_CHAT = Path(__file__).parents[1] / "models" / "tiny-chat"


def byte_level() -> Vocabulary:
    return Vocabulary(Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json")), 448)


def sentencepiece() -> Vocabulary:
    """Words that carry their space, and single bytes for all else, as Llama 2 has them."""
    words = ["<unk>", "<s>", "▁Hello", "▁world", "!"]
    tokens = words + [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return Vocabulary(tokenizer, len(vocab) + 7)  # seven rows of padding


BYTE_LEVEL = byte_level()
PIECES = sentencepiece()
HELLO, WORLD, BANG, BYTE = 2, 3, 4, 5


def byte_ids(text: str) -> list[int]:
    return [BYTE + byte for byte in text.encode()]


class TestVocabulary:
    def test_bytes_of_byte_level_tokens(self) -> None:
        text = "Beautiful is better, naïve café 日本 🙂\n"
        ids = BYTE_LEVEL.encode(text, special=False)
        assert b"".join(map(BYTE_LEVEL.raw, ids)) == text.encode()
        assert BYTE_LEVEL.raw(2) == b"<|im_end|>"
        assert BYTE_LEVEL.raw(100_000) == b""

    def test_bytes_of_sentence_pieces(self) -> None:
        assert PIECES.raw(HELLO) == b" Hello"
        assert PIECES.raw(BYTE + 0xE2) == b"\xe2"
        assert PIECES.raw(1) == b"<s>"

    def test_special_tokens_are_known_and_not_shown(self) -> None:
        assert BYTE_LEVEL.special == {0, 1, 2}
        assert BYTE_LEVEL.decode([1, *BYTE_LEVEL.encode("this", special=False), 2]) == "this"

    @pytest.mark.parametrize("token", [-1, 448, 2**70])
    def test_an_id_that_the_model_lacks_is_named(self, token: int) -> None:
        with pytest.raises(InvalidRequest, match=f"'prompt': {token} is no token") as caught:
            BYTE_LEVEL.check([0, 447, token], "prompt")
        assert caught.value.param == "prompt"

    def test_a_tokenizer_without_a_decoder(self) -> None:
        words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        assert Vocabulary(words, 2).raw(1) == b"b"


def spell(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


class TestDetokenizer:
    @given(st.text(max_size=60))
    def test_any_text_survives_byte_level_tokens(self, text: str) -> None:
        assert spell(Detokenizer(BYTE_LEVEL), BYTE_LEVEL.encode(text, special=False)) == text

    @given(st.lists(st.integers(3, 447), max_size=80))
    def test_random_tokens_decode_as_they_do_at_once(self, ids: list[int]) -> None:
        assert spell(Detokenizer(BYTE_LEVEL), ids) == BYTE_LEVEL.decode(ids)

    @settings(max_examples=300)
    @given(st.lists(st.sampled_from([HELLO, WORLD, BANG, *range(5, 261), 262]), max_size=60))
    def test_broken_bytes_never_raise_and_never_lose_a_word(self, ids: list[int]) -> None:
        text = spell(Detokenizer(PIECES), ids)
        for token, word in ((HELLO, "Hello"), (WORLD, "world"), (BANG, "!")):
            assert text.count(word) >= ids.count(token)

    def test_half_a_character_is_held_back(self) -> None:
        detokenizer = Detokenizer(PIECES)
        assert [detokenizer.push(token) for token in [HELLO, *byte_ids("€"), BANG]] == [
            "Hello",
            "",
            "",
            "€",
            "!",
        ]

    def test_an_incomplete_character_at_the_end_becomes_a_replacement(self) -> None:
        detokenizer = Detokenizer(PIECES)
        assert detokenizer.push(HELLO) == "Hello"
        assert detokenizer.push(BYTE + 0xE2) == ""
        assert detokenizer.flush() == "\ufffd"
        assert detokenizer.flush() == ""

    def test_the_space_before_a_continuation_is_kept(self) -> None:
        assert Detokenizer(PIECES).push(WORLD) == "world"
        assert Detokenizer(PIECES, before=[HELLO]).push(WORLD) == " world"

    def test_broken_bytes_without_end_are_released_in_time(self) -> None:
        detokenizer = Detokenizer(PIECES)
        texts = [detokenizer.push(BYTE + 0xE2) for _ in range(3 * MAX_HELD)]
        assert sum(map(len, texts)) == 3 * MAX_HELD
        assert not any(texts[: MAX_HELD - 1])

    def test_special_tokens_print_nothing(self) -> None:
        assert Detokenizer(BYTE_LEVEL).push(1) == ""


class TestRoom:
    def test_the_rest_of_the_context_unless_told_otherwise(self) -> None:
        assert room(10, None, 64, "prompt") == 54
        assert room(10, 5, 64, "prompt") == 5
        assert room(10, 54, 64, "prompt") == 54

    def test_a_prompt_that_fills_the_context(self) -> None:
        with pytest.raises(ContextTooLong, match=r"64 tokens; .* context of 64") as caught:
            room(64, 1, 64, "messages")
        assert caught.value.param == "messages"
        assert caught.value.details == {"prompt_tokens": 64, "limit": 64}

    def test_an_answer_that_would_not_fit(self) -> None:
        with pytest.raises(ContextTooLong, match="10 tokens and max_tokens 55 make 65") as caught:
            room(10, 55, 64, "prompt")
        assert caught.value.param == "max_tokens"
        assert caught.value.details == {"prompt_tokens": 10, "limit": 64, "max_tokens": 55}


def sequence(
    limit: int = 100, stops: tuple[str, ...] = (), lead: str = "", ends: tuple[int, ...] = (1,)
) -> Sequence:
    return Sequence(
        [HELLO, BANG],
        limit,
        frozenset(ends),
        Detokenizer(PIECES),
        StopMatcher(stops),
        lead,
    )


def play(stream: Sequence, ids: list[int]) -> list[Delta | Finish]:
    steps: list[Delta | Finish] = []
    for token in ids:
        steps.append(stream.accept(token))
        if isinstance(steps[-1], Finish):
            break
    return steps


class TestSequence:
    def test_an_end_marker_stops_and_is_counted_but_not_shown(self) -> None:
        stream = sequence()
        assert play(stream, [HELLO, BANG, 1]) == [
            Delta("Hello", [HELLO]),
            Delta("!", [BANG]),
            Finish("stop", "", [1]),
        ]
        assert len(stream.generated) == 3

    def test_the_limit_releases_what_was_held_back(self) -> None:
        steps = play(sequence(limit=3, stops=("!!!!",)), [HELLO, BANG, BANG])
        assert steps == [
            Delta("Hello", [HELLO]),
            Delta("", [BANG]),
            Finish("length", "!!", [BANG]),
        ]

    def test_an_end_marker_releases_half_a_character(self) -> None:
        assert play(sequence(), [BYTE + 0xE2, 1])[-1] == Finish("stop", "\ufffd", [1])

    def test_a_stop_that_completes_on_the_last_token(self) -> None:
        steps = play(sequence(limit=2, stops=("o!",)), [HELLO, BANG])
        assert steps == [Delta("Hell", [HELLO]), Finish("stop", "", [BANG], stop="o!")]

    def test_a_stop_inside_what_the_end_releases(self) -> None:
        last = play(sequence(stops=("\ufffd",)), [BYTE + 0xE2, 1])[-1]
        assert last == Finish("stop", "", [1], stop="\ufffd")
        last = play(sequence(limit=1, stops=("\ufffd",)), [BYTE + 0xE2])[-1]
        assert last == Finish("stop", "", [BYTE + 0xE2], stop="\ufffd")

    def test_the_lead_goes_out_with_the_first_token(self) -> None:
        assert play(sequence(lead="Hello!"), [WORLD, BANG]) == [
            Delta("Hello!world", [WORLD]),
            Delta("!", [BANG]),
        ]

    def test_what_is_due(self) -> None:
        stream = sequence()
        assert stream.due(1) == [HELLO]
        assert stream.due(8) == [HELLO, BANG]
        stream.computed = 2
        assert [stream.ready, stream.accept(WORLD), stream.ready] == [
            True,
            Delta("world", [WORLD]),
            False,
        ]
        assert stream.due(8) == [WORLD]
        stream.computed = 1
        assert stream.due(8) == [BANG, WORLD]

    @given(
        st.lists(st.sampled_from([HELLO, WORLD, BANG, *byte_ids("€"), 262]), max_size=24),
        st.lists(st.sampled_from(["o w", "!!", "€!", "Hello!"]), max_size=3),
        st.integers(1, 24),
        st.integers(0, 24),
    )
    def test_a_resumed_stream_continues_exactly(
        self, ids: list[int], stops: list[str], limit: int, cut: int
    ) -> None:
        whole = play(sequence(limit, tuple(stops), "lead "), [*ids, 1])
        delivered = whole[: min(cut, len(whole) - 1)]
        second = sequence(limit, tuple(stops), "lead ")
        assert second.resume([token for step in delivered for token in step.ids]) is None
        assert play(second, [*ids, 1][len(delivered) :]) == whole[len(delivered) :]

    def test_resuming_what_had_ended_finishes_at_once(self) -> None:
        assert sequence().resume([HELLO, 1]) == Finish("stop", "", [])
        assert sequence(limit=1).resume([HELLO]) == Finish("length", "Hello", [])
