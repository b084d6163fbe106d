"""How much key-value cache a text replica has, in tokens, and how it is dealt out. Pure.

The node's agent books these numbers before a replica is loaded, and the replica keeps to them.
"""

from __future__ import annotations

from typing import NamedTuple

#: Tokens of cache that a slot brings with it where there are few. Slots share what they bring, so
#: this is no limit of a row: a long conversation takes what short ones leave. Reserving a whole
#: context of 128k tokens would leave no model fitting anywhere, and is rarely filled.
SLOT_TOKENS = 2048

#: Four such slots hold sixteen usual questions with their answers; only with more slots than that
#: is more cache booked, this much for each.
ENOUGH_TOKENS, MORE_TOKENS = 4 * SLOT_TOKENS, 512

#: The smallest region of cache; also the step between sizes at the small end.
SMALLEST = 128

#: Share of the cache that keeps the beginnings of prompts for the next request with the same.
PREFIX_SHARE = 1 / 8

#: Tensors of regions grow by a quarter at a time (see ``pool``), so this share of what is booked
#: for rows can be promised to them.
ROW_SHARE = 0.8

#: Tokens beyond those known that a row gets room for when it begins.
HEADSTART = 32


class Capacity(NamedTuple):
    """The cache of a replica, in tokens: for rows, and for the beginnings of prompts."""

    rows: int
    prefixes: int


def cache_tokens(slots: int, context: int | None) -> int:
    """Return the tokens of cache that a replica with so many slots takes in all."""
    most = context or SLOT_TOKENS
    few = min(slots * min(most, SLOT_TOKENS), ENOUGH_TOKENS)
    return max(few, slots * min(most, MORE_TOKENS))


def divide(slots: int, context: int | None) -> Capacity:
    """Return how that is divided. A single row may always grow to the whole context."""
    total = cache_tokens(slots, context)
    prefixes = int(total * PREFIX_SHARE)
    return Capacity(int((total - prefixes) * ROW_SHARE), prefixes)


def size_for(tokens: int) -> int:
    """Return the size of the region that holds so many tokens.

    Above the smallest, sizes are 2 and 3 times the powers of two. So little more than a third of a
    region is ever empty, few different sizes are in use at a time, and a row that grows is moved a
    number of times that is logarithmic in its length.
    """
    size = SMALLEST
    while size < tokens:
        if size + size // 2 >= tokens and size > SMALLEST:
            return size + size // 2
        size *= 2
    return size
