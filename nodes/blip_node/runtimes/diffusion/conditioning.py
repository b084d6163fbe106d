"""Prompts with weights, as the numbers that a denoiser reads: for encoders of CLIP's sort.

What :meth:`encode_prompt` of these pipelines does with a text is done here with tokens, each of
which has a weight; a prompt without any gives the same numbers (tests compare them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from blip.errors import ContextTooLong, UnsupportedField
from blip.kinds.image import ImageInput
from blip_node.runtimes.diffusion import prompts
from blip_node.runtimes.diffusion.weighting import Parts, Piece, Weighted, parse

#: Pipelines whose text encoders are all CLIP's; by name, as the ways from encoder to denoiser
#: differ. The name is that of the text-to-image pipeline.
PIPELINES = frozenset({"StableDiffusionPipeline", "StableDiffusionXLPipeline"})

#: Parts of one prompt that are encoded apart, as BREAK asks: each is an encoder's whole run, and
#: as many tokens more for every step to look at.
MAX_PARTS = 16


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a pipeline is told instead of texts, and how many tokens the prompt has."""

    arguments: dict[str, Any]
    tokens: int


def condition(pipe: Any, base: str, wishes: ImageInput) -> Conditioning:
    """Return the arguments for a task's prompts. ``base`` names the model's own pipeline.

    Where there is nothing to weigh the pipeline gets the texts themselves, without the signs that
    kept brackets from counting. Raises :class:`~blip.errors.InvalidRequest`, ``ContextTooLong``,
    or ``UnsupportedField`` for weights that the pipeline has no way to take.
    """
    texts = {"prompt": wishes.prompt, "negative_prompt": wishes.negative_prompt}
    read = {field: parse(text, field) for field, text in texts.items()}
    if base not in PIPELINES:
        for field, weighted in read.items():
            if weighted.explicit:
                raise UnsupportedField(
                    f"'{field}' gives words weights, which {base} cannot take.",
                    hint="Only models whose text encoder is CLIP alone can (Stable Diffusion 1, "
                    "2 and XL). Say in words what matters.",
                    param=field,
                )
        return _as_text(pipe, texts)
    plain = {field: weighted.plain for field, weighted in read.items()}
    if plain["prompt"] is not None and plain["negative_prompt"] is not None:
        return _as_text(pipe, plain)
    encoder = _Encoder(pipe)
    tokens = encoder.check(read["prompt"], "prompt")
    encoder.check(read["negative_prompt"], "negative_prompt")
    longest = max(len(weighted.parts) for weighted in read.values())
    arguments: dict[str, Any] = {}
    for field, weighted in read.items():
        # both must be as long: what is missing is encoded as nothing
        numbers, pooled = encoder.encode(weighted.parts + [[]] * (longest - len(weighted.parts)))
        zero = field == "negative_prompt" and not texts[field] and encoder.empty_is_zero
        arguments[f"{field}_embeds"] = numbers * 0 if zero else numbers
        if pooled is not None:
            name = f"{field.removesuffix('prompt')}pooled_prompt_embeds"
            arguments[name] = pooled * 0 if zero else pooled
    return Conditioning(arguments, tokens)


def _as_text(pipe: Any, texts: dict[str, Any]) -> Conditioning:
    tokens = prompts.check(pipe, texts["prompt"], "prompt")
    prompts.check(pipe, texts["negative_prompt"], "negative_prompt")
    found = {"prompt": texts["prompt"]}
    if texts["negative_prompt"]:
        found["negative_prompt"] = texts["negative_prompt"]
    return Conditioning(found, tokens)


#: Tokens of one part, and what each weighs.
_Chunk = list[tuple[int, float]]


class _Encoder:
    """The text encoders of one pipeline. Each reads every part, with its own tokens."""

    def __init__(self, pipe: Any) -> None:
        parts = pipe.components
        pairs = [(parts.get(f"tokenizer{n}"), parts.get(f"text_encoder{n}")) for n in ("", "_2")]
        self._pairs = [(words, model) for words, model in pairs if words is not None]
        #: XL reads the layer before the last, without its norm; the others what comes out.
        self._penultimate = "tokenizer_2" in parts
        #: Whether no negative prompt is zeros, and not what an encoder makes of nothing.
        self.empty_is_zero = bool(pipe.config.get("force_zeros_for_empty_prompt"))

    def check(self, weighted: Weighted, field: str) -> int:
        """Return the tokens of a prompt, with marks. Raises ``ContextTooLong`` for a part of it."""
        if len(weighted.parts) > MAX_PARTS:
            raise ContextTooLong(
                f"'{field}' has {len(weighted.parts)} parts; {MAX_PARTS} are the most.",
                hint="Use BREAK less often.",
                param=field,
            )
        words, _ = self._pairs[0]
        limit = min(int(words.model_max_length) for words, _ in self._pairs)
        marks = len(_marks(words))
        lengths = [marks + len(_tokens(words, part)) for part in weighted.parts]
        if max(lengths) > limit:
            raise prompts.too_long(field, max(lengths), limit)
        return sum(lengths)

    def encode(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the numbers of all parts, [1, tokens, width], and the first one's pooled ones."""
        with torch.no_grad():
            encoded = [self._part(part) for part in parts]
        return torch.cat([numbers for numbers, _ in encoded], dim=1), encoded[0][1]

    def _part(self, part: list[Piece]) -> tuple[torch.Tensor, torch.Tensor | None]:
        found, pooled = [], None
        for words, model in self._pairs:
            marks = _marks(words)
            inner = _tokens(words, part)
            before = marks[: len(marks) // 2]
            ids = [*before, *(token for token, _ in inner), *marks[len(before) :]]
            length = int(words.model_max_length)
            padded = words.pad({"input_ids": [ids]}, padding="max_length", max_length=length)
            masked = getattr(model.config, "use_attention_mask", False)
            out = model(
                torch.tensor(padded["input_ids"]).to(model.device),
                attention_mask=torch.tensor(padded["attention_mask"]).to(model.device)
                if masked
                else None,
                output_hidden_states=self._penultimate,
            )
            numbers = out.hidden_states[-2] if self._penultimate else out[0]
            if self._penultimate and out[0].ndim == 2:
                pooled = out[0]  # of the encoder that projects
            weights = torch.ones(length)
            weights[len(before) : len(before) + len(inner)] = torch.tensor([w for _, w in inner])
            found.append(_weigh(numbers, weights.to(numbers)))
        return torch.cat(found, dim=-1), pooled


def _weigh(numbers: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scale each token's numbers by its weight, and all so that their mean is as it was.

    That is what the web UI does whose grammar this is; prompts are written with it in mind.
    """
    if bool((weights == 1).all()):
        return numbers
    scaled = numbers * weights[None, :, None]
    mean, before = scaled.float().mean(), numbers.float().mean()
    # a mean that all but vanished, or turned round, says nothing about the size
    factor = before / mean if abs(float(mean)) > abs(float(before)) / 8 else 1.0
    return scaled * factor if float(factor) > 0 else scaled


def _marks(words: Any) -> list[int]:
    """Return the tokens that stand around every text: where it begins and where it ends."""
    ids: list[int] = words("")["input_ids"]
    return ids


def _tokens(words: Any, part: list[Piece]) -> _Chunk:
    found: _Chunk = []
    for text, weight in part:
        ids = words(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        found += [(token, weight) for token in ids]
    return found
