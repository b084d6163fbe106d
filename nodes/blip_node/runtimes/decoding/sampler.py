"""Choosing the next token from a model's logits, as a request asks for it.

All rows of a step are chosen from together, so that sampling costs a few operations a step and not
a few a row. What a row gets does not depend on the others: every operation works row by row.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from blip.errors import RuntimeFailed
from blip.kinds.text import TextInput, TokenLogprob
from blip_node.runtimes.decoding.constraint import Constraint, restrict
from blip_node.runtimes.decoding.vocabulary import Vocabulary

#: Below this a softmax in float32 is a step function, and dividing by it overflows soon after.
GREEDY_BELOW = 1e-4

#: Of a vocabulary, sorting this many of the likeliest is enough for nearly every ``top_p``; only a
#: row whose nucleus is larger has all of it sorted, which takes some twenty times as long.
NUCLEUS = 1024


class Choice(NamedTuple):
    """A chosen token. Log-probabilities are the model's own, before any of the request's wishes:
    of the token, and of the likeliest ones with their ids, best first; None if not asked for.
    """

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = []  # noqa: RUF012  (never mutated)


def told(choice: Choice, vocabulary: Vocabulary) -> TokenLogprob | None:
    """Return a choice's log-probabilities as they travel; None if not asked for."""
    if choice.logprob is None:
        return None
    named = ((vocabulary.raw(token), logprob) for token, logprob in choice.top)
    top = [(_text(raw), logprob, raw) for raw, logprob in named]
    raw = vocabulary.raw(choice.token)
    return TokenLogprob(_text(raw), choice.logprob, raw, top)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def uniform(seed: int, step: int) -> float:
    """Return step ``step`` of the random sequence ``seed``: a number from [0, 1).

    A function of both and of nothing else, so that an attempt that takes over at any step draws
    what the first would have drawn, on any device. The last bit is left out so that the product
    with any total stays below that total.
    """
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 12) * 2.0**-52


class Sampler:
    """The wishes of one request, applied in this order: logit_bias, repetition_penalty (over
    prompt and answer), frequency and presence penalty (over the answer), what the ``constraint``
    allows, then temperature, top_k and top_p, and a draw; or, at temperature 0, the likeliest.
    """

    def __init__(
        self,
        wishes: TextInput,
        prompt: Sequence[int],
        device: str = "cpu",
        constraint: Constraint | None = None,
    ) -> None:
        self._device = device
        self.constraint = constraint
        self.logprobs = wishes.logprobs
        self.seed = secrets.randbits(64) if wishes.seed is None else wishes.seed
        self.greedy = wishes.temperature < GREEDY_BELOW
        self.temperature = wishes.temperature
        self.top_k = wishes.top_k
        self.top_p = wishes.top_p
        self._frequency = wishes.frequency_penalty
        self._presence = wishes.presence_penalty
        self._bias = self._tensors(wishes.logit_bias) if wishes.logit_bias else None
        self._counts: Tensor | None = None
        self._counted = 0
        self._penalty: RepetitionPenaltyLogitsProcessor | None = None
        if wishes.repetition_penalty != 1.0:
            self._penalty = RepetitionPenaltyLogitsProcessor(wishes.repetition_penalty)
            self._ids = self._row(prompt)
        #: Whether the logits are to be changed before anything is chosen from them.
        self.adjusts = bool(
            self._bias is not None or self._penalty or self._frequency or self._presence
        )

    def pick(self, logits: Tensor, generated: Sequence[int]) -> Choice:
        """Choose the token that follows ``generated`` from ``logits`` [vocabulary].

        ``generated`` only ever grows between calls. Raises
        :class:`~blip.errors.RuntimeFailed` when the model computed no numbers.
        """
        chosen = choose([self], logits[None], [generated])[0]
        if isinstance(chosen, Exception):
            raise chosen
        return chosen

    def adjusted(self, logits: Tensor, generated: Sequence[int]) -> Tensor:
        """Return the logits [vocabulary] with bias and penalties, leaving the original as it is."""
        fresh = list(generated[self._counted :])
        self._counted = len(generated)
        if self._bias is not None:
            logits = logits.index_add(0, *self._bias)
        if self._penalty is not None:
            self._ids = torch.cat([self._ids, self._row(fresh)], dim=1)
            logits = self._penalty(self._ids, logits[None])[0]
        if self._frequency or self._presence:
            if self._counts is None:
                self._counts = torch.zeros_like(logits)
            ids = self._row(fresh)[0]
            self._counts.index_add_(0, ids, torch.ones_like(ids, dtype=logits.dtype))
            used = (self._counts > 0).to(logits.dtype)
            logits = logits - self._frequency * self._counts - self._presence * used
        return logits

    def choice(self, token: int, logits: Tensor) -> Choice:
        """Return a chosen token with the log-probabilities that were asked for."""
        if self.logprobs is None:
            return Choice(token)
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(min(self.logprobs, logprobs.numel()))
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Choice(token, logprobs[token].item(), top)

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self._device)

    def _tensors(self, bias: dict[int, float]) -> tuple[Tensor, Tensor]:
        return self._row(list(bias))[0], torch.tensor([*bias.values()], device=self._device)


def choose(
    samplers: Sequence[Sampler], logits: Tensor, generated: Sequence[Sequence[int]]
) -> list[Choice | Exception]:
    """Choose a token for each row of ``logits`` [rows, vocabulary] by its sampler's wishes.

    A row that holds no numbers gets a :class:`~blip.errors.RuntimeFailed`, the others their token.
    """
    logits = logits.float()
    highest = logits.max(-1).values.tolist()  # NaN if one is among them
    scores = logits
    if any(sampler.adjusts for sampler in samplers):
        scores = torch.stack(
            [
                sampler.adjusted(row, so_far) if sampler.adjusts else row
                for sampler, row, so_far in zip(samplers, logits, generated, strict=True)
            ]
        )
    scores = restrict(scores, [sampler.constraint for sampler in samplers])
    rows = range(len(samplers))
    usable = [math.isfinite(highest[row]) for row in rows]
    tokens: dict[int, int] = {}
    greedy = [row for row in rows if usable[row] and samplers[row].greedy]
    drawn = [row for row in rows if usable[row] and not samplers[row].greedy]
    if greedy:
        tokens |= zip(greedy, _some(scores, greedy).argmax(-1).tolist(), strict=True)
    if drawn:
        points = [uniform(samplers[row].seed, len(generated[row])) for row in drawn]
        narrowed = _narrowed([samplers[row] for row in drawn], _some(scores, drawn))
        tokens |= zip(drawn, _draw(narrowed, points), strict=True)
    return [
        samplers[row].choice(tokens[row], logits[row]) if usable[row] else _no_numbers()
        for row in rows
    ]


def _some(scores: Tensor, rows: list[int]) -> Tensor:
    """Return some rows; without a copy if they are all."""
    return scores if len(rows) == len(scores) else scores[rows]


def _narrowed(samplers: Sequence[Sampler], scores: Tensor) -> Tensor:
    """Return scores [rows, vocabulary] by each row's temperature, -inf for what its top_k and
    top_p leave out.
    """
    heat = [[sampler.temperature] for sampler in samplers]
    scores = scores / torch.tensor(heat, device=scores.device)
    cut = [row for row, each in enumerate(samplers) if each.top_k or each.top_p < 1.0]
    if not cut:
        return scores
    wishes, some = [samplers[row] for row in cut], _some(scores, cut)
    size = scores.shape[1]
    count = min(size, max(NUCLEUS, *(each.top_k for each in wishes)))
    lowest, whole = _lowest(wishes, some, count)
    if not all(whole):
        larger = [row for row, found in enumerate(whole) if not found]
        lowest[larger] = _lowest([wishes[row] for row in larger], some[larger], size)[0]
    some = some.masked_fill(some < lowest, float("-inf"))
    if len(cut) == len(samplers):
        return some
    return scores.index_copy(0, torch.tensor(cut, device=scores.device), some)


def _lowest(samplers: Sequence[Sampler], scores: Tensor, count: int) -> tuple[Tensor, list[bool]]:
    """Return the lowest score [rows, 1] that each row's top_k and top_p leave in, and whether the
    ``count`` likeliest tokens were enough to tell.

    A token stays if those before it do not make up ``top_p`` of what ``top_k`` leaves; so do others
    with the same score, or it would depend on how they happen to be sorted.
    """
    device, size = scores.device, scores.shape[1]
    best = scores.topk(count).values
    most = torch.tensor([[min(each.top_k or size, size)] for each in samplers], device=device)
    # what is to leave all in must not depend on how a sum is rounded
    shares = [[each.top_p if each.top_p < 1.0 else math.inf] for each in samplers]
    share = torch.tensor(shares, device=device, dtype=torch.float64)
    weights = (best - best[:, :1]).double().exp()
    passed = weights.cumsum(-1)
    total = (scores.logsumexp(-1, keepdim=True) - best[:, :1]).double().exp()
    total = torch.where(most < size, passed.gather(1, most.clamp(max=count) - 1), total)
    left = (passed - weights < share * total) & (torch.arange(count, device=device) < most)
    kept = left.sum(-1, keepdim=True).clamp(min=1)
    enough = (kept < count) | (most <= count)
    return best.gather(1, kept - 1), (enough | (count == size))[:, 0].tolist()


def _draw(scores: Tensor, points: Sequence[float]) -> list[int]:
    """Return for each row the index at which the cumulative probability passes its point."""
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    at = torch.tensor(points, dtype=torch.float64, device=scores.device)[:, None]
    found: list[int] = torch.searchsorted(cumulative, cumulative[:, -1:] * at, right=True)[
        :, 0
    ].tolist()
    return found


def _no_numbers() -> RuntimeFailed:
    return RuntimeFailed(
        "the model computed NaN or infinity instead of logits",
        hint="If it was loaded in float16, load it in bfloat16 or float32.",
    )
