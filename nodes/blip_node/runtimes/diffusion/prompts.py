"""Whether a prompt fits the text encoders: pipelines cut silently, which nobody wants."""

from __future__ import annotations

import inspect
from typing import Any

from blip.errors import ContextTooLong


def window(pipe: Any) -> tuple[Any, int] | None:
    """Return the tokenizer that counts and the tokens that fit; None where nothing is cut.

    Pipelines with a parameter for it cut at that, in their last text encoder that is no CLIP, and
    give the others (CLIP beside T5, say) what fits there, by design. The rest have the window of
    their smallest.
    """
    tokenizers = [
        tokenizer
        for name, tokenizer in sorted(pipe.components.items())
        if name.startswith("tokenizer") and tokenizer is not None
    ]
    if not tokenizers:
        return None
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    read = [tokenizer for tokenizer in tokenizers if not _is_clip(tokenizer)]
    if parameter is not None and isinstance(parameter.default, int) and read:
        return read[-1], parameter.default
    smallest = min(tokenizers, key=lambda tokenizer: int(tokenizer.model_max_length))
    limit = int(smallest.model_max_length)
    # transformers writes "unknown" as a huge number
    return (smallest, limit) if limit < 1 << 20 else None


def _is_clip(tokenizer: Any) -> bool:
    return type(tokenizer).__name__.startswith("CLIP")


def count(tokenizer: Any, prompt: str) -> int:
    """Return the tokens of a prompt, with the marks that the tokenizer adds."""
    ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
    return len(ids)


def check(pipe: Any, prompt: str, field: str) -> int:
    """Return the tokens of a prompt; 0 where the pipeline does not say how it counts.

    Raises :class:`~blip.errors.ContextTooLong` with both numbers if the encoder would cut it.
    """
    found = window(pipe)
    if found is None:
        return 0
    tokenizer, limit = found
    tokens = count(tokenizer, prompt)
    if tokens > limit:
        raise too_long(field, tokens, limit)
    return tokens


def too_long(field: str, tokens: int, limit: int) -> ContextTooLong:
    """Return the error for a prompt, or a part of one, that the encoder would cut."""
    return ContextTooLong(
        f"'{field}' has {tokens} tokens; the model's text encoder takes {limit}.",
        hint="Shorten it: what is beyond would be ignored. Models whose text encoder is CLIP alone "
        "take longer prompts in parts, with BREAK between them.",
        param=field,
        details={"prompt_tokens": tokens, "limit": limit},
    )
