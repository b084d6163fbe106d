"""A window of sound, as Whisper's encoder has it, to tokens: transformers' loop, token by token.

What may come is decided by transformers' own rules for Whisper's timestamps; how a window is tried
again, hotter, when the text is bad, is OpenAI's ``decode_with_fallback``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, StoppingCriteria
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from blip.errors import RuntimeFailed

#: A text that compresses better than this repeats itself; one less likely than that a token is a
#: guess; and where nobody speaks is likelier than this, a guess is taken for silence. OpenAI's.
MOST_COMPRESSION, LEAST_LOGPROB, SILENCE = 2.4, -1.0, 0.6

#: How hot a window is decoded, one after the other until the text is good. OpenAI's.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Decoded(NamedTuple):
    """A window's tokens without the end marker, and what is known about them."""

    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression: float

    @property
    def good(self) -> bool:
        """Whether it need not be tried again."""
        return self.compression <= MOST_COMPRESSION and self.avg_logprob >= LEAST_LOGPROB


class Decoder:
    """Decodes windows with one model. ``first_stamp`` is the id of the timestamp 0."""

    def __init__(self, model: Any, tokenizer: Any, limit: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._limit = limit
        self._window = int(model.config.max_target_positions)
        own = model.generation_config
        self.end = own.eos_token_id[0] if isinstance(own.eos_token_id, list) else own.eos_token_id
        self.first_stamp = int(own.no_timestamps_token_id) + 1

    def text(self, tokens: Sequence[int]) -> str:
        """Return what tokens say, without timestamps and marks."""
        spoken = [token for token in tokens if token < self.end]
        return str(self._tokenizer.decode(spoken, skip_special_tokens=True))

    def decode(
        self,
        encoded: Any,
        prefix: Sequence[int],
        temperatures: Sequence[float],
        seed: int,
        enough: Callable[[Decoded], bool],
        look: Callable[[], None],
    ) -> Decoded:
        """Decode at one temperature after the other, until the text is good or ``enough``."""
        found = None
        for temperature in temperatures:
            found = self._once(encoded, prefix, temperature, seed, look)
            if found.good or enough(found):
                break
        assert found is not None, "no temperature"
        return found

    def _once(
        self,
        encoded: Any,
        prefix: Sequence[int],
        temperature: float,
        seed: int,
        look: Callable[[], None],
    ) -> Decoded:
        own = self._model.generation_config
        options: dict[str, Any] = {}
        if temperature > 0:
            # the lane's thread is the only one that draws here
            torch.manual_seed(seed)
            options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            # a long prompt and its marks leave less than half of the window
            max_new_tokens=min(self._limit, self._window - len(prefix)),
            eos_token_id=self.end,
            pad_token_id=self.end if own.pad_token_id is None else own.pad_token_id,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            suppress_tokens=_ids(own.suppress_tokens),
            begin_suppress_tokens=_ids(own.begin_suppress_tokens),
            **options,
        )
        stamps = WhisperTimeStampLogitsProcessor(own, begin_index=len(prefix))
        chances = _Chances()
        ids = torch.tensor([prefix], device=self._model.device)
        with torch.inference_mode():
            # not Whisper's own generate: that tells nobody how far it is, and keeps all logits
            answer = GenerationMixin.generate(
                self._model,
                encoder_outputs=encoded,
                decoder_input_ids=ids,
                generation_config=config,
                logits_processor=[stamps, chances],
                stopping_criteria=[_Look(look)],
            )
        look()
        tokens: list[int] = answer[0, len(prefix) :].tolist()
        total = chances.total(tokens[-1]) if tokens else 0.0
        average = total / max(1, len(tokens))
        if tokens and tokens[-1] == self.end:
            tokens.pop()
        text = self.text(tokens).strip().encode()
        compression = len(text) / len(zlib.compress(text)) if text else 1.0
        return Decoded(tokens, temperature, average, compression)


class _Chances(LogitsProcessor):  # type: ignore[misc]
    """Adds up the log-probabilities of the tokens that were chosen, and keeps no others.

    It stands behind the rules and before the temperature, where OpenAI measures, too.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._last: Any = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._last is not None:
            self._sum += float(self._last[input_ids[0, -1]])
        self._last = scores[0].float().log_softmax(-1)
        if self._last.isnan().any():
            raise RuntimeFailed(
                "the model computed NaN instead of words",
                hint="Its weights may overflow in half precision: set its dtype to float32.",
            )
        return scores

    def total(self, last: int) -> float:
        """Return the sum, the last token included."""
        return self._sum + (0.0 if self._last is None else float(self._last[last]))


class _Look(StoppingCriteria):  # type: ignore[misc]
    """Looks up after every token."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self._look()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _ids(value: Any) -> list[int] | None:
    return list(value) if value else None
