"""Choosing tokens: each wish of a request by itself, and the randomness."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from blip.errors import RuntimeFailed
from blip.kinds.text import TextInput
from blip_node.runtimes.decoding.sampler import (
    NUCLEUS,
    Choice,
    Sampler,
    _narrowed,
    choose,
    uniform,
)

LOGITS = torch.tensor([1.0, 3.0, 2.0, 0.0, -1.0])


def sampler(prompt: tuple[int, ...] = (), **wishes: Any) -> Sampler:
    return Sampler(TextInput(**{"temperature": 0, **wishes}), prompt)


def pick(sampler: Sampler, generated: tuple[int, ...] = (), logits: Any = LOGITS) -> int:
    return sampler.pick(logits, generated).token


def share(count: int, **wishes: Any) -> dict[int, float]:
    """How often each token is drawn, over many steps of one seed."""
    drawn = sampler(**{"temperature": 1, "seed": 7, **wishes})
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(pick(drawn, tuple(tokens)))
    return {token: n / count for token, n in Counter(tokens).items()}


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert pick(sampler()) == 1
    assert pick(sampler(), logits=torch.tensor([0.0, 5.0, 5.0])) == 1
    assert pick(sampler(temperature=1e-9)) == 1


def test_half_precision_logits_are_fine() -> None:
    assert pick(sampler(), logits=LOGITS.bfloat16()) == 1
    assert pick(sampler(temperature=0.5, seed=1), logits=LOGITS.half()) in range(5)


def test_logit_bias_adds_up() -> None:
    assert pick(sampler(logit_bias={2: 1.5})) == 2
    assert pick(sampler(logit_bias={1: -100})) == 2
    assert pick(sampler(logit_bias={1: -100, 4: 100})) == 4
    assert LOGITS.tolist() == [1.0, 3.0, 2.0, 0.0, -1.0]  # the model's own are left alone


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    assert pick(sampler((1,), repetition_penalty=2.0)) == 2  # 3 / 2 < 2
    assert pick(sampler((1,), repetition_penalty=2.0), (2,)) == 1  # 3 / 2 > 2 / 2
    assert pick(sampler((1, 2, 0), repetition_penalty=10.0), (3,)) == 1  # 0.3, 0.2, 0.1, 0.0


def test_frequency_penalty_grows_and_presence_does_not() -> None:
    often = sampler(frequency_penalty=0.6)
    assert [pick(often, g) for g in [(), (1,), (1, 1), (1, 1, 2)]] == [1, 1, 2, 1]
    once = sampler(presence_penalty=0.9)
    assert [pick(once, g) for g in [(), (1,), (1, 1), (1, 1, 1)]] == [1, 1, 1, 1]
    assert pick(sampler(presence_penalty=1.1), (1, 1)) == 2
    assert pick(sampler(presence_penalty=1.5, prompt=(1,))) == 1  # the prompt does not count


def test_a_sampler_that_starts_late_counts_what_was_before() -> None:
    early = sampler(frequency_penalty=1.0, repetition_penalty=1.3)
    for generated in [(), (1,), (1, 2)]:
        early.pick(LOGITS, generated)
    late = sampler(frequency_penalty=1.0, repetition_penalty=1.3)
    assert late.pick(LOGITS, (1, 2, 1)) == early.pick(LOGITS, (1, 2, 1))


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    assert set(share(200, top_k=2)) == {1, 2}
    assert set(share(200, top_p=0.6)) == {1}
    assert set(share(200, top_p=0.7)) == {1, 2}
    assert set(share(100, top_k=1, temperature=2)) == {1}
    assert set(share(50, top_k=1_000_000)) <= set(range(5))


def test_draws_follow_the_probabilities() -> None:
    probabilities = LOGITS.softmax(-1).tolist()
    shares = share(4000)
    for token, probability in enumerate(probabilities):
        deviation = math.sqrt(probability * (1 - probability) / 4000)
        assert abs(shares.get(token, 0) - probability) < 4 * deviation
    hot, cold = share(1000, temperature=2), share(1000, temperature=0.25)
    assert hot[4] > shares[4]
    assert cold[1] > 0.9


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((1000,), float("-inf"))
    logits[[0, 500]] = 0.0
    drawn = sampler(temperature=2, seed=3)
    tokens = {drawn.pick(logits, range(step)).token for step in range(200)}
    assert tokens == {0, 500}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_are_an_error_not_a_token(broken: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[3] = broken
    with pytest.raises(RuntimeFailed, match="NaN or infinity"):
        pick(sampler(temperature=temperature), logits=logits)
    with pytest.raises(RuntimeFailed):
        pick(sampler(temperature=temperature), logits=torch.full((5,), float("-inf")))


def test_logprobs_are_the_models_own() -> None:
    expected = LOGITS.log_softmax(-1).tolist()
    choice = sampler(logprobs=2, logit_bias={4: 100}, temperature=1).pick(LOGITS, ())
    assert choice.token == 4
    assert choice.logprob == pytest.approx(expected[4])
    assert [token for token, _ in choice.top] == [1, 2]
    assert [logprob for _, logprob in choice.top] == pytest.approx([expected[1], expected[2]])
    assert sampler(logprobs=0).pick(LOGITS, ()) == Choice(1, expected[1], [])
    assert len(sampler(logprobs=20).pick(LOGITS, ()).top) == 5
    assert sampler().pick(LOGITS, ()).logprob is None


def test_seeds() -> None:
    def draw(seed: int | None, start: int = 0) -> list[int]:
        drawn = sampler(temperature=2, seed=seed)
        return [drawn.pick(torch.zeros(1000), range(t)).token for t in range(start, 20)]

    assert draw(5) == draw(5)
    assert draw(5)[7:] == draw(5, start=7)
    assert draw(5) != draw(6)
    assert draw(-(2**80)) == draw(-(2**80))
    assert draw(None) != draw(None)


WISHES = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0, 0.7, 1, 1.9]), "seed": st.integers(0, 9)},
    optional={
        "top_k": st.sampled_from([1, 7, 5000]),
        "top_p": st.sampled_from([0.05, 0.5, 0.99]),
        "repetition_penalty": st.just(1.3),
        "frequency_penalty": st.just(0.5),
        "logit_bias": st.just({3: 2.0}),
        "logprobs": st.integers(0, 3),
    },
)

#: Larger than the part of it that is sorted first, peaked and flat.
VOCABULARY = 3000


def logits_of(seed: int, spread: float) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


@settings(deadline=None)
@given(st.lists(st.tuples(WISHES, st.integers(0, 5), st.sampled_from([0.1, 3.0])), min_size=1))
def test_company_changes_nothing(rows: list[tuple[dict[str, Any], int, float]]) -> None:
    logits = torch.stack([logits_of(number, spread) for number, (_, _, spread) in enumerate(rows)])
    if len(rows) > 2:
        logits[1, 5] = float("nan")
    so_far = [tuple(range(step)) for _, step, _ in rows]
    together = choose([sampler((1, 2), **wishes) for wishes, *_ in rows], logits, so_far)
    for number, (wishes, *_) in enumerate(rows):
        alone = choose([sampler((1, 2), **wishes)], logits[[number]], [so_far[number]])[0]
        mine = together[number]
        if isinstance(alone, Exception):
            assert number == 1
            assert type(mine) is type(alone) is RuntimeFailed
        else:
            assert isinstance(mine, Choice)
            assert mine.token == alone.token
            assert mine.top == alone.top


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 20),
    st.sampled_from([0.01, 1.0, 4.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0, 1, 40, 2000, 9000]),
    st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
)
def test_what_stays_is_what_transformers_leaves(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float
) -> None:
    scores = logits_of(seed, spread)[None]
    wishes: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    mine = _narrowed([sampler(**wishes)], scores)
    theirs = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    kept, expected = mine.isfinite().sum().item(), theirs.isfinite().sum().item()
    # sums of thousands of probabilities in another order: the last one in or out may differ
    assert abs(kept - expected) <= (1 if expected > 100 else 0)
    both = mine.isfinite() & theirs.isfinite()
    assert both.sum() >= expected - 1
    torch.testing.assert_close(mine[both], theirs[both])


def test_a_nucleus_that_is_larger_than_what_is_sorted_first() -> None:
    flat = torch.zeros(1, 2 * NUCLEUS)
    assert _narrowed([sampler(temperature=1, top_p=0.9)], flat).isfinite().all()  # all are equal
    slope = -torch.arange(4 * NUCLEUS, dtype=torch.float32)[None] * 1e-6
    kept = _narrowed([sampler(temperature=1, top_p=0.9)], slope).isfinite().sum().item()
    assert abs(kept / (4 * NUCLEUS) - 0.9) < 0.01


@given(st.integers(), st.integers(0, 10**6))
def test_uniform_is_in_its_interval(seed: int, step: int) -> None:
    point = uniform(seed, step)
    assert 0 <= point < 1
    assert uniform(seed, step) == point
    assert 1.0000000000000002 * point < 1.0000000000000002


def test_uniform_is_uniform_over_steps_and_over_seeds() -> None:
    for points in ([uniform(1, t) for t in range(2000)], [uniform(s, 1) for s in range(2000)]):
        for tenth, count in Counter(int(point * 10) for point in points).items():
            assert 140 <= count <= 260, tenth
