"""How many prompt tokens of whom are computed in one turn. Pure."""

from __future__ import annotations

from collections.abc import Sequence

#: Prompt tokens in a turn in which no other row decodes: enough to use the arithmetic, few enough
#: that a cancel or a new arrival does not wait long.
ALONE = 256

#: The same while others decode: their next token waits for this. A GPU reads all weights for every
#: pass, and computes this many tokens in about the time that reading takes. A CPU has no such
#: spare arithmetic: every prompt token costs nearly its full time from some 16 on, so fewer of
#: them hold the others up less and lose little.
BESIDE = {"cpu": 64}
BESIDE_ELSEWHERE = 256

#: The oldest prompt's share of a turn, whatever else has come since.
OLDEST_SHARE = 1 / 4


def budget(device: str, *, decoding: bool) -> int:
    """Return the prompt tokens of one turn, over all rows."""
    if not decoding:
        return ALONE
    return BESIDE.get(device.partition(":")[0], BESIDE_ELSEWHERE)


def deal(remaining: Sequence[int], budget: int) -> list[int]:
    """Deal out the prompt tokens of a turn to rows that still lack so many, oldest row first.

    Whoever lacks least comes first, because so the mean wait for a first token is shortest; the
    oldest gets its share ahead of that, so that a long prompt is done in the end, however many
    short ones keep coming. The whole budget is used while anything remains.
    """
    dealt = [0] * len(remaining)
    if not remaining:
        return dealt
    dealt[0] = min(remaining[0], max(1, int(budget * OLDEST_SHARE)))
    left = budget - dealt[0]
    for row in sorted(range(len(remaining)), key=lambda each: remaining[each]):
        more = min(remaining[row] - dealt[row], left)
        dealt[row] += more
        left -= more
    return dealt
