"""Regions of cache, beginnings of prompts, and attention over rows of different lengths."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from blip_node.runtimes.decoding.pool import Pools, Row, load, save
from blip_node.runtimes.decoding.prefixes import SHORTEST, Prefixes, shared
from blip_node.runtimes.decoding.ragged import Pass, attention

LAYERS = (0, 3)
HEADS, WIDTH = 2, 4


class Regions(RuleBasedStateMachine):
    """Rows that come, write, grow and go must keep what they wrote, and leave nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = Pools()
        self.rows: list[tuple[Row, int, float]] = []
        self.mark = 0.0

    @rule(tokens=st.integers(1, 500))
    def come(self, tokens: int) -> None:
        self.mark += 1
        row = self.pools.grow(None, tokens, 0)
        shape = torch.zeros(1, HEADS, 1, WIDTH)
        for layer in LAYERS:
            for tensor in row.pool.write(layer, shape, shape):
                tensor[row.index, :, :tokens] = self.mark + layer
        self.rows.append((row, tokens, self.mark))

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0), more=st.integers(0, 600))
    def grow(self, which: int, more: int) -> None:
        at = which % len(self.rows)
        row, tokens, mark = self.rows[at]
        self.rows[at] = (self.pools.grow(row, tokens + more, tokens), tokens, mark)
        assert self.rows[at][0].pool.size >= tokens + more

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0))
    def go(self, which: int) -> None:
        row, _, _ = self.rows.pop(which % len(self.rows))
        self.pools.release(row)

    @invariant()
    def each_has_its_own(self) -> None:
        for row, tokens, mark in self.rows:
            for layer, parts in save(row, tokens).items():
                for part in parts:
                    assert part.eq(mark + layer).all()
        assert self.pools.reserved == sum(row.pool.size for row, *_ in self.rows)

    @invariant()
    def what_is_not_in_use_is_zero(self) -> None:
        for pool in self.pools._pools.values():
            assert pool.rows
            assert [row.index for row in pool.rows] == list(range(len(pool.rows)))
            for tensor in (*pool.keys.values(), *pool.values.values()):
                used = len(pool.rows)
                assert not tensor[used:].any()
                assert len(tensor) <= used + 2 * (1 + used // 4)


TestRegions = Regions.TestCase
TestRegions.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_a_row_that_cannot_grow_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools()
    row = pools.grow(None, 100, 0)
    shape = torch.ones(1, HEADS, 1, WIDTH)
    row.pool.write(0, shape, shape)[0][row.index] = 7.0
    monkeypatch.setattr(
        "blip_node.runtimes.decoding.pool.Pool._zeros",
        lambda *args: (_ for _ in ()).throw(MemoryError()),
    )
    with pytest.raises(MemoryError):
        pools.grow(row, 1000, 100)
    assert pools.reserved == 128
    assert save(row, 100)[0][0].eq(7.0).all()
    assert list(pools._pools) == [128]


class TestPrefixes:
    def stored(self, length: int) -> Any:
        return {0: (torch.zeros(HEADS, length, WIDTH), torch.zeros(HEADS, length, WIDTH))}

    @given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
    def test_shared(self, one: list[int], other: list[int]) -> None:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        assert shared(one, other) == len(list(same))

    def test_the_longest_beginning_is_found_but_never_a_whole_prompt(self) -> None:
        prefixes = Prefixes(1000)
        system = list(range(100))
        for tail in ([500], [600, 601]):
            tokens = system + tail
            assert prefixes.wants(tokens) == len(tokens)
            prefixes.keep(tokens, self.stored(len(tokens)))
        found = prefixes.find([*system, 600, 7])
        assert found is not None
        assert found[1] == 101
        again = prefixes.find([*system, 500])
        assert again is not None
        assert again[1] == 100  # all but the last, whose successor is what is asked for
        assert prefixes.find([1, 2, 3]) is None
        assert prefixes.find(system[: SHORTEST - 1]) is None

    def test_what_is_known_is_not_kept_twice_and_what_goes_on_replaces(self) -> None:
        prefixes = Prefixes(1000)
        prefixes.keep(list(range(50)), self.stored(50))
        assert prefixes.wants(list(range(50))) == 0
        assert prefixes.wants(list(range(10))) == 0
        prefixes.keep(list(range(80)), self.stored(80))
        assert prefixes.tokens == 80

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(32, 150)), max_size=30))
    def test_memory_is_bounded_and_the_last_one_stays(self, used: list[tuple[int, int]]) -> None:
        prefixes = Prefixes(200)
        for first, length in used:
            prompt = [first] * length
            prefixes.find(prompt)
            if keep := prefixes.wants(prompt):
                prefixes.keep(prompt[:keep], self.stored(keep))
            assert prefixes.tokens <= 200
            assert prefixes.find([*prompt, 77]) is not None

    def test_a_prompt_that_is_too_long_is_kept_in_part(self) -> None:
        assert Prefixes(100).wants(list(range(5000))) == 100
        assert Prefixes(0).wants(list(range(5000))) == 0


def naive(query: Tensor, key: Tensor, value: Tensor, past: int, **extra: Any) -> Tensor:
    """Attention of one row, query by query and head by head: [tokens, heads, width]."""
    rows = []
    groups = query.shape[1] // key.shape[1]
    for at in range(query.shape[2]):
        heads = []
        first = max(0, past + at + 1 - (extra["window"] or 10**9))
        for head in range(query.shape[1]):
            seen = slice(first, past + at + 1)
            scores = key[0, head // groups, seen] @ query[0, head, at] * extra["scale"]
            if extra["softcap"]:
                scores = torch.tanh(scores / extra["softcap"]) * extra["softcap"]
            if extra["sinks"] is not None:
                scores = torch.cat([scores, extra["sinks"][head : head + 1]])
            weights = scores.softmax(0)[: past + at + 1 - first]
            heads.append(weights @ value[0, head // groups, seen])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 140), st.integers(1, 9)), min_size=1, max_size=6),
    st.sampled_from([None, 1, 5, 64]),
    st.sampled_from([None, 2.0]),
    st.booleans(),
    st.integers(1, 3),
)
def test_attention_in_company_is_attention_alone(
    rows: list[tuple[int, int]],
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    groups: int,
) -> None:
    torch.manual_seed(1)
    pools, work, expected, parts = Pools(), [], [], []
    extra: dict[str, Any] = {
        "window": window,
        "softcap": softcap,
        "scale": 0.4,
        "sinks": torch.randn(HEADS * groups) if with_sinks else None,
    }
    for past, count in rows:
        row = pools.grow(None, past + count, 0)
        query = torch.randn(1, HEADS * groups, count, WIDTH)
        key, value = (torch.randn(1, HEADS, past + count, WIDTH) for _ in range(2))
        load(row, {0: (key[0, :, :past], value[0, :, :past])})
        work.append((row, count, past))
        expected.append(naive(query, key, value, past, **extra))
        parts.append((query, key[:, :, past:], value[:, :, past:]))
    cut = Pass(work, "cpu")
    query, key, value = (
        torch.cat([parts[number][which] for number in cut.order], dim=2) for which in range(3)
    )
    module = torch.nn.Module()
    module.layer_idx = 0
    found, _ = attention(
        module, query, key, value, scaling=0.4, sliding_window=window, softcap=softcap,
        s_aux=extra["sinks"], ragged=cut,
    )  # fmt: skip
    assert cut.windows == {0: window}
    for number, (_, count) in enumerate(rows):
        mine = found[0, cut.ends[number] - count : cut.ends[number]]
        torch.testing.assert_close(mine, expected[number], rtol=1e-4, atol=1e-5)


def test_attention_refuses_what_it_does_not_compute() -> None:
    something = torch.zeros(1, HEADS, 1, WIDTH)
    with pytest.raises(ValueError, match="cannot be cut into rows"):
        attention(None, something, something, something)
    with pytest.raises(ValueError, match="cannot be cut into rows"):
        attention(
            None, something, something, something, position_bias=something, ragged=Pass([], "cpu")
        )
