"""Choosing the next token from a model's logits, as a request asks for it."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from blip.errors import RuntimeFailed
from blip.kinds.text import TextInput

#: Below this a softmax in float32 is a step function, and dividing by it overflows soon after.
GREEDY_BELOW = 1e-4


class Choice(NamedTuple):
    """A chosen token. Log-probabilities are the model's own, before any of the request's wishes:
    of the token, and of the likeliest ones with their ids, best first; None if not asked for.
    """

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = []  # noqa: RUF012  (never mutated)


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
    prompt and answer), frequency and presence penalty (over the answer), then temperature, top_k
    and top_p, and a draw; or, at temperature 0, the likeliest.
    """

    def __init__(self, wishes: TextInput, prompt: Sequence[int], device: str = "cpu") -> None:
        self._device = device
        self._logprobs = wishes.logprobs
        self._seed = secrets.randbits(64) if wishes.seed is None else wishes.seed
        self._greedy = wishes.temperature < GREEDY_BELOW
        self._frequency = wishes.frequency_penalty
        self._presence = wishes.presence_penalty
        self._bias = self._tensors(wishes.logit_bias) if wishes.logit_bias else None
        self._counts: Tensor | None = None
        self._counted = 0
        self._penalty: RepetitionPenaltyLogitsProcessor | None = None
        if wishes.repetition_penalty != 1.0:
            self._penalty = RepetitionPenaltyLogitsProcessor(wishes.repetition_penalty)
            self._ids = self._row(prompt)
        self._warpers = []
        if not self._greedy:
            if wishes.temperature != 1.0:
                self._warpers.append(TemperatureLogitsWarper(wishes.temperature))
            if wishes.top_k:
                self._warpers.append(TopKLogitsWarper(wishes.top_k))
            if wishes.top_p < 1.0:
                self._warpers.append(TopPLogitsWarper(wishes.top_p))

    def pick(self, logits: Tensor, generated: Sequence[int]) -> Choice:
        """Choose the token that follows ``generated`` from ``logits`` [vocabulary].

        ``generated`` only ever grows between calls. Raises
        :class:`~blip.errors.RuntimeFailed` when the model computed no numbers.
        """
        logits = logits.float()
        if not math.isfinite(logits.max().item()):
            raise RuntimeFailed(
                "the model computed NaN or infinity instead of logits",
                hint="If it was loaded in float16, load it in bfloat16 or float32.",
            )
        scores = self._adjusted(logits, generated)[None]
        if self._greedy:
            token = int(scores.argmax())
        else:
            for warp in self._warpers:
                scores = warp(None, scores)
            token = self._draw(scores[0], uniform(self._seed, len(generated)))
        return self._choice(token, logits)

    def _adjusted(self, logits: Tensor, generated: Sequence[int]) -> Tensor:
        """Return the logits with bias and penalties, leaving the original as it is."""
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

    @staticmethod
    def _draw(scores: Tensor, point: float) -> int:
        """Return the index at which the cumulative probability passes ``point``."""
        cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        return int(torch.searchsorted(cumulative, cumulative[-1] * point, right=True))

    def _choice(self, token: int, logits: Tensor) -> Choice:
        if self._logprobs is None:
            return Choice(token)
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(min(self._logprobs, logprobs.numel()))
        top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Choice(token, logprobs[token].item(), top)

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self._device)

    def _tensors(self, bias: dict[int, float]) -> tuple[Tensor, Tensor]:
        return self._row(list(bias))[0], torch.tensor([*bias.values()], device=self._device)
