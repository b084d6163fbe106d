"""The beginnings of recent prompts with what was computed for them, for the next that begins so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blip_node.runtimes.decoding.pool import Stored

#: Shorter beginnings are computed anew: a template's own markers are common to all prompts.
SHORTEST = 32


class _Entry(NamedTuple):
    tokens: list[int]
    stored: Stored


class Prefixes:
    """The prompts that were used last, up to ``limit`` tokens in all.

    What a prompt leaves in a cache depends on its tokens alone, and of those at a place on the
    ones before it. So whatever two prompts have in common from their beginning, a system message
    or a conversation so far, need be computed once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: list[_Entry] = []  # the one that was used last comes last

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return sum(len(entry.tokens) for entry in self._entries)

    def find(self, prompt: Sequence[int]) -> tuple[Stored, int] | None:
        """Return what is stored for the longest known beginning of a prompt, and its length.

        The last token is never among them: something must be computed to see what follows.
        """
        best, length = None, SHORTEST - 1
        for entry in self._entries:
            common = min(shared(entry.tokens, prompt), len(prompt) - 1)
            if common > length:
                best, length = entry, common
        if best is None:
            return None
        self._entries.remove(best)
        self._entries.append(best)
        return best.stored, length

    def wants(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt that has been computed are worth storing, if any."""
        length = min(len(prompt), self._limit)
        if length < SHORTEST or any(
            shared(entry.tokens, prompt) >= length - 1 for entry in self._entries
        ):
            return 0
        return length

    def keep(self, tokens: list[int], stored: Stored) -> None:
        """Store the beginning of a prompt. What it continues, and what is oldest, makes room."""
        self._entries = [
            entry for entry in self._entries if shared(entry.tokens, tokens) < len(entry.tokens)
        ]
        self._entries.append(_Entry(tokens, stored))
        while self.tokens > self._limit:
            del self._entries[0]

    def clear(self) -> None:
        """Forget everything: memory is short."""
        self._entries.clear()


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    # comparing slices is so much faster than a loop that halving the distance pays
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
