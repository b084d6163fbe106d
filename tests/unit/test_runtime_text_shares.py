"""What a text replica deals out, memory and time, and what it remembers: all pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip_node.catalogue import CPU_BYTES, SLOTS, Entry
from blip_node.models.description import Description
from blip_node.models.spec import ModelSpec
from blip_node.runtimes.decoding import share
from blip_node.runtimes.decoding.capacity import (
    ENOUGH_TOKENS,
    MORE_TOKENS,
    SLOT_TOKENS,
    SMALLEST,
    cache_tokens,
    divide,
    size_for,
)

REMAINING = st.lists(st.integers(2, 5000), max_size=40)


class TestCapacity:
    @given(st.integers(1, 200_000))
    def test_a_region_holds_what_it_is_for_and_little_more(self, tokens: int) -> None:
        size = size_for(tokens)
        assert size >= tokens
        assert size == SMALLEST or size <= 2 * tokens
        assert size <= 2 * SMALLEST or 2 * size <= 3 * tokens
        assert size_for(size) == size

    def test_few_sizes(self) -> None:
        sizes = sorted({size_for(tokens) for tokens in range(1, 4097)})
        assert sizes == [128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]

    @given(st.integers(1, 256), st.none() | st.integers(1, 200_000))
    def test_no_more_is_dealt_out_than_is_booked(self, slots: int, context: int | None) -> None:
        rows, prefixes = divide(slots, context)
        assert rows / 0.8 + prefixes <= cache_tokens(slots, context) + 1

    def test_more_slots_bring_more_cache_and_never_less(self) -> None:
        booked = [cache_tokens(slots, 8192) for slots in range(1, 65)]
        assert booked == sorted(booked)
        assert booked[0] == SLOT_TOKENS
        assert booked[3] == booked[15] == ENOUGH_TOKENS
        assert booked[31] == 32 * MORE_TOKENS
        assert cache_tokens(32, 100) == 3200

    def test_the_node_books_what_the_replica_takes(self) -> None:
        description = Description(
            "m", "here", ("chat", "completion"), counts={"F32": 1000}, context=4096,
            cache_elements=10,
        )  # fmt: skip
        spec = ModelSpec("m", "here")
        assert SLOTS["chat"] == SLOTS["completion"] == 32
        cache = Entry(spec, description).memory(gpu=False) - 4400 - CPU_BYTES
        assert cache == cache_tokens(32, 4096) * 10 * 4


class TestPromptTokens:
    @given(REMAINING, st.integers(1, 512))
    def test_the_budget_is_used_and_no_more(self, remaining: list[int], budget: int) -> None:
        dealt = share.deal(remaining, budget)
        assert len(dealt) == len(remaining)
        assert sum(dealt) == min(budget, sum(remaining))
        assert all(0 <= got <= lacks for got, lacks in zip(dealt, remaining, strict=True))

    @given(REMAINING.filter(bool), st.integers(1, 512))
    def test_the_oldest_gets_on(self, remaining: list[int], budget: int) -> None:
        dealt = share.deal(remaining, budget)
        assert dealt[0] >= min(remaining[0], max(1, budget // 4))

    @given(REMAINING.filter(bool), st.integers(4, 512))
    def test_of_the_others_the_shortest_is_first(self, remaining: list[int], budget: int) -> None:
        dealt = share.deal(remaining, budget)
        unfinished = [lacks for got, lacks in zip(dealt, remaining, strict=True) if 0 < got < lacks]
        assert len(unfinished) <= 2  # the oldest, and the one at which the budget ended
        if len(remaining) > 1:
            shortest = min(range(1, len(remaining)), key=lambda row: remaining[row])
            assert dealt[shortest] or not any(dealt[1:])

    def test_a_long_prompt_ends_though_short_ones_keep_coming(self) -> None:
        lacks, turns = 1000, 0
        while lacks:
            lacks -= share.deal([lacks, *[64] * 10], 64)[0]
            turns += 1
        assert turns <= 63  # 16 tokens each, a quarter of the budget

    @pytest.mark.parametrize(
        ("device", "decoding", "budget"),
        [("cpu", False, 256), ("cpu", True, 64), ("cuda:0", False, 256), ("cuda:0", True, 256)],
    )
    def test_a_turn(self, device: str, decoding: bool, budget: int) -> None:
        assert share.budget(device, decoding=decoding) == budget
