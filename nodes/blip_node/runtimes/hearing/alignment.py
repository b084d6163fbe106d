"""When each word is said: from the attention that some of Whisper's heads pay to the sound.

As OpenAI's ``find_alignment`` does it (https://github.com/openai/whisper, whisper/timing.py): the
text is read by the decoder once more, and those heads that are known to look where a word is
(``alignment_heads`` of the generation configuration) tell the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from transformers.models.whisper import tokenization_whisper

from blip.errors import RuntimeFailed
from blip.kinds.transcription import Word
from blip_node.runtimes.hearing.warp import first_frames

#: Frames over which the median of a head's attention is taken, as OpenAI has it.
_MEDIAN = 7


def align(
    model: Any, encoded: Any, prefix: Sequence[int], text: Sequence[int], frames: int
) -> list[int]:
    """Return the frame in which each of a text's tokens begins, and that in which the last ends.

    ``encoded`` is the encoder's output, ``prefix`` what the decoder is started with, up to the mark
    that there will be no timestamps; ``frames`` is how many of the encoder's are sound and not
    padding.
    """
    heads = model.generation_config.alignment_heads
    end = model.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    ids = torch.tensor([[*prefix, *text, end]], device=model.device)
    attention = _attention(model, encoded, ids, heads)[:, len(prefix) - 1 : -1, :frames].float()
    std, mean = torch.std_mean(attention, dim=-2, keepdim=True, unbiased=False)
    scaled = _median((attention - mean) / std.clamp_min(1e-12))
    costs = -scaled.mean(0).cpu().double().numpy()
    return first_frames(costs)


def _attention(model: Any, encoded: Any, ids: Any, heads: Sequence[Sequence[int]]) -> Any:
    """Return what the heads attend to: [heads, tokens, frames]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the fused ones keep no weights
    try:
        found = model(
            encoder_outputs=encoded,
            decoder_input_ids=ids,
            output_attentions=True,
            use_cache=False,
        ).cross_attentions
    finally:
        model.set_attn_implementation(before)
    weights = torch.stack([found[layer][0, head] for layer, head in heads])
    if not torch.isfinite(weights).all():
        raise RuntimeFailed("the model computed NaN or infinity instead of attention")
    return weights


def _median(values: Any) -> Any:
    """Return [heads, tokens, frames] with each number the median of those around it."""
    side = _MEDIAN // 2
    if values.shape[-1] <= side:
        return values
    padded = torch.nn.functional.pad(values, (side, side), mode="reflect")
    return padded.unfold(-1, _MEDIAN, 1).sort(-1).values[..., side]


def words_of(
    tokenizer: Any,
    tokens: Sequence[int],
    starts: Sequence[int],
    language: str | None,
    step: float,
    offset: float,
) -> list[list[Word]]:
    """Join tokens to words and give them their times, a list of words for each word's tokens.

    ``starts`` are frames of ``step`` seconds, one more than tokens; ``offset`` is where the window
    begins. Each inner list holds the word at the place of its first token, and nothing elsewhere.
    """
    # private to transformers, but it knows the punctuation and the scripts without spaces
    texts, groups, _ = tokenization_whisper._combine_tokens_into_words(
        tokenizer, list(tokens), language
    )
    places: list[list[Word]] = [[] for _ in tokens]
    bounds = list(accumulate(map(len, groups), initial=0))
    for text, low, high in zip(texts, bounds, bounds[1:], strict=False):
        if high <= len(tokens) and text.strip():
            begin, end = starts[low] * step, starts[high] * step
            places[low].append(Word(text.strip(), offset + begin, offset + max(begin, end)))
    return places
