"""Grammars that hold token by token, through llguidance (https://github.com/guidance-ai/llguidance).

A grammar is compiled once, off every thread that others wait for; each answer gets a copy of its
state. The tokens that it allows next are a mask over the vocabulary, which the sampler applies
after everything else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from blip.errors import InvalidRequest, RuntimeFailed
from blip_node.runtimes.decoding.lark import Lark
from blip_node.runtimes.decoding.vocabulary import Vocabulary

#: Compiled grammars that are kept: those of the applications that ask again and again.
KEPT = 32

#: Bits of a word of a mask.
_WORD = 32


class Constraint:
    """A grammar and how far an answer has come in it.

    It belongs to one answer, and to one thread at a time. While it is not ``active`` everything
    goes.
    """

    def __init__(self, matcher: LLMatcher, *, active: bool) -> None:
        self.matcher = matcher
        self.active = active

    def begin(self, tokens: Sequence[int]) -> bool:
        """Start after these tokens; False if the grammar does not take them: it stays idle."""
        if self.active:
            return True
        fresh = self.matcher.deep_copy()
        if fresh.try_consume_tokens(list(tokens)) < len(tokens) or fresh.is_error():
            return False
        self.matcher, self.active = fresh, True
        return True

    def advance(self, token: int) -> None:
        """Take the token that was chosen.

        Raises :class:`~blip.errors.RuntimeFailed` for one that the grammar does not allow.
        """
        if not self.matcher.consume_token(token):
            raise self.failure()

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return self.active and self.matcher.is_stopped() and not self.matcher.is_error()

    def failure(self) -> RuntimeFailed:
        """Return what went wrong in the grammar."""
        reason = plain(self.matcher.get_error()) or "it allows no token"
        return RuntimeFailed(
            f"the grammar of this answer came to no next token: {reason}",
            hint="Ask for a simpler schema or grammar.",
        )


class Guide:
    """What one model's answers may be constrained with; threads may share it.

    Its view of the vocabulary is made when it is first needed: that takes about a second for 150
    thousand tokens.
    """

    def __init__(self, vocabulary: Vocabulary, ends: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._ends = list(ends)
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def constraint(self, lark: Lark, *, active: bool) -> Constraint:
        """Return a fresh constraint. It may take a while: call it off the event loop.

        Raises :class:`~blip.errors.InvalidRequest` naming the field that does not compile.
        """
        with self._lock:
            found = self._compiled.get(lark.text)
        if found is None:
            found = self._compile(lark)
        with self._lock:
            self._compiled[lark.text] = found
            self._compiled.move_to_end(lark.text)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Constraint(found.deep_copy(), active=active)

    def _compile(self, lark: Lark) -> LLMatcher:
        limits = LLParserLimits(verbose_errors=False)
        tokens = self._view()
        matcher = LLMatcher(tokens, lark.text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what the first mask builds is there for all copies
            return matcher
        for part in lark.parts:
            wrong, words = LLMatcher.validate_grammar_with_warnings(
                part.text, tokens, limits=limits
            )
            if wrong:
                raise InvalidRequest(f"'{part.at}': {plain(words[0])}", param=part.at)
        at = lark.parts[0].at
        raise InvalidRequest(f"'{at}': {plain(matcher.get_error())}", param=at)

    def _view(self) -> LLTokenizer:
        with self._lock:
            if self._tokens is None:
                self._tokens = LLTokenizer(
                    self._vocabulary.backend.to_str(),
                    n_vocab=self._vocabulary.size,
                    eos_token=self._ends or None,
                )
            return self._tokens


def restrict(scores: Tensor, constraints: Sequence[Constraint | None]) -> Tensor:
    """Return ``scores`` [rows, vocabulary] with -inf for tokens that a row's grammar forbids.

    Raises :class:`~blip.errors.RuntimeFailed` if a grammar came to its end, or to its limits.
    """
    some = [(row, each) for row, each in enumerate(constraints) if each is not None and each.active]
    if not some:
        return scores
    size = scores.shape[1]
    # rows without a grammar keep all bits set
    words = torch.full((len(constraints), -(-size // _WORD)), -1, dtype=torch.int32)
    matchers = [(each.matcher, row) for row, each in some]
    _executor().unsafe_compute_mask_ptr(
        matchers, words.data_ptr(), words.shape[1] * 4, len(constraints)
    )
    for _, each in some:
        if each.matcher.is_error():
            raise each.failure()
    return scores.masked_fill(_forbidden(words, size, scores.device), float("-inf"))


def _forbidden(words: Tensor, size: int, device: torch.device) -> Tensor:
    """Return what the bits of masks [rows, words] forbid, [rows, size]."""
    if device.type == "cpu":  # some ten times as fast there as shifting
        bits = np.unpackbits((~words).numpy().view(np.uint8), axis=1, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)[:, :size]
    places = torch.arange(_WORD, dtype=torch.int32, device=device)
    allowed = (words.to(device)[:, :, None] >> places) & 1
    return allowed.flatten(1)[:, :size] == 0


_shared: LLExecutor | None = None


def _executor() -> LLExecutor:
    """Return the threads that compute masks of several rows at once."""
    global _shared
    if _shared is None:
        _shared = LLExecutor()
    return _shared


def plain(error: str) -> str:
    """Return llguidance's words without the place in a text that the client never saw."""
    text = error.strip().removeprefix("ERROR: ")
    lines = [line for line in text.splitlines() if line.strip()]
    cut = next((at for at, line in enumerate(lines) if line.lstrip().startswith("1 |")), len(lines))
    text = "\n".join(lines[:cut])
    head, colon, rest = text.partition("): ")
    if colon and head.startswith("at "):
        text = rest
    return text.removeprefix("failed to compile JSON schema: ").strip()
