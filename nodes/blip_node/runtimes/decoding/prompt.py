"""A rendered prompt, and whether it fits."""

from __future__ import annotations

from typing import NamedTuple

from blip.errors import ContextTooLong


class Prompt(NamedTuple):
    """Tokens to begin with.

    ``lead`` is text to send ahead of the answer, ``before`` the tokens that the answer's text
    continues (none where it begins anew).
    """

    ids: list[int]
    lead: str = ""
    before: tuple[int, ...] = ()


def room(prompt_tokens: int, max_tokens: int | None, context: int, param: str) -> int:
    """Return how many tokens may be generated: what was asked for, or the rest of the context.

    Raises :class:`~blip.errors.ContextTooLong` with the numbers when that does not fit.
    """
    details = {"prompt_tokens": prompt_tokens, "limit": context}
    if prompt_tokens >= context:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens; the model's context of {context} leaves no "
            "room for an answer",
            param=param,
            details=details,
        )
    if max_tokens is None:
        return context - prompt_tokens
    if prompt_tokens + max_tokens > context:
        raise ContextTooLong(
            f"the prompt's {prompt_tokens} tokens and max_tokens {max_tokens} make "
            f"{prompt_tokens + max_tokens}; the model's context is {context}",
            param="max_tokens",
            details={**details, "max_tokens": max_tokens},
        )
    return max_tokens
