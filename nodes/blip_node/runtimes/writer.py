"""A loaded sequence-to-sequence model, around transformers' own ``generate``.

transformers 5 has no pipelines for summaries and translations any more. What they did stands here:
a task's prefix and limits come from the model's configuration, languages from its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from blip.errors import BlipError, InvalidRequest, ModelLoadFailed
from blip.kinds.pipelines import Text2TextInput, results_to_wire
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.batching import batches
from blip_node.runtimes.heads.engine import reader_of
from blip_node.runtimes.heads.reader import Reader, Row
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import failure, is_out_of_memory, load_pretrained

#: Texts that are written at once. Each beam of each text takes a row of the decoder's cache.
TEXTS_AT_ONCE = 8

#: Tokens that are written of a text where neither the request nor the model's configuration says.
#: Its general default, 20, would end within a sentence.
DEFAULT_NEW_TOKENS = 256

#: ``max_length`` of a configuration that never set it.
_UNSET_LENGTH = 20

#: Languages that an error names.
_NAMED = 12


class Writer:
    """Jobs one by one, the texts of each in batches."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-write")
        self._model, self._tokenizer = self._lane.first(
            lambda: load_pretrained(spec, "AutoModelForSeq2SeqLM", report, unused=())
        )
        self._device = spec.device
        self._own_language: str | None = getattr(self._tokenizer, "src_lang", None)
        try:
            self._reader: Reader = reader_of(self._model, self._tokenizer, spec)
            self._lane.first(self._warm)
        except Exception as error:
            self._lane.close()
            if isinstance(error, BlipError) or is_out_of_memory(error):
                raise failure(error) from error
            raise ModelLoadFailed(f"it cannot write a text: {error}") from error
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Run one job."""
        return await self._lane.run(job, self._work)

    def close(self) -> None:
        """Stop at the next token, and the thread."""
        self._lane.close()

    def _warm(self) -> None:
        encoding, _ = self._reader.read(0, "a")
        self._generate([Row(self, encoding)], {"max_new_tokens": 1}, [])

    def _work(self, job: Job) -> Outcome:
        wishes: Text2TextInput = job.input
        prefix, settings = self._settings(wishes)
        rows, cut = [], 0
        for index, text in enumerate(wishes.texts, wishes.first):
            encoding, shorter = self._reader.read(index, prefix + text, truncate=wishes.truncate)
            rows.append(Row(self, encoding))
            cut += shorter
        written: list[list[int]] = [[] for _ in rows]
        stop = StoppingCriteriaList([_Look(lambda: self._lane.look(job))])
        for batch in batches([len(row) for row in rows], TEXTS_AT_ONCE):
            ids = self._generate([rows[at] for at in batch], settings, stop)
            for at, tokens in zip(batch, ids, strict=True):
                written[at] = tokens
        completion = sum(map(self._length, written))
        usage = {
            "prompt_tokens": sum(map(len, rows)),
            "completion_tokens": completion,
        } | ({"truncated": cut} if cut else {})
        texts = [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
        units = float(completion * (wishes.num_beams or 1))
        return Outcome(results_to_wire(texts), usage=usage, units=max(1.0, units))

    def _length(self, ids: list[int]) -> int:
        """Return how many tokens were written, the end marker included, the padding not."""
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return next((at for at, token in enumerate(ids, 1) if token in ends), len(ids))

    def _generate(self, rows: list[Row], settings: dict[str, Any], stop: Any) -> list[list[int]]:
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.full((len(rows), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row.encoding.ids)
            mask[at, : len(row)] = 1
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                do_sample=False,
                stopping_criteria=stop or None,
                **settings,
            )
        found: list[list[int]] = output[:, 1:].tolist()  # the first token began the decoder
        return found

    def _settings(self, wishes: Text2TextInput) -> tuple[str, dict[str, Any]]:
        """Return what goes before each text, and the arguments of ``generate``."""
        config = self._model.config
        specific = getattr(config, "task_specific_params", None) or {}
        known: dict[str, Any] = specific.get(self._task(wishes), {})
        own = self._model.generation_config
        settings: dict[str, Any] = {}
        for name in ("num_beams", "length_penalty", "no_repeat_ngram_size", "min_length"):
            if known.get(name) is not None:
                settings[name] = known[name]
        limit = own.max_new_tokens or known.get("max_length") or own.max_length
        if limit is None or limit == _UNSET_LENGTH:
            limit = DEFAULT_NEW_TOKENS
        settings["max_new_tokens"] = wishes.max_new_tokens or limit
        for name in (
            "min_new_tokens",
            "num_beams",
            "length_penalty",
            "repetition_penalty",
            "no_repeat_ngram_size",
        ):
            if getattr(wishes, name) is not None:
                settings[name] = getattr(wishes, name)
        if wishes.min_new_tokens is not None or wishes.max_new_tokens is not None:
            settings.pop("min_length", None)  # the model's own would contradict the request's
        if wishes.min_new_tokens is not None:
            least, most = wishes.min_new_tokens, settings["max_new_tokens"]
            if least > most:
                raise InvalidRequest(
                    f"'min_new_tokens' is {least}, more than the {most} that there may be",
                    param="min_new_tokens",
                )
        prefix = str(known.get("prefix") or "")
        if self._own_language is not None:
            # it changes what is put around a text, and must not stay for the next request
            self._tokenizer.src_lang = self._own_language
        if wishes.source is not None or wishes.target is not None:
            self._speak(wishes, settings, prefix)
        return prefix, settings

    def _task(self, wishes: Text2TextInput) -> str:
        if wishes.task == "translation" and wishes.source and wishes.target:
            return f"translation_{wishes.source}_to_{wishes.target}"
        return wishes.task

    def _speak(self, wishes: Text2TextInput, settings: dict[str, Any], prefix: str) -> None:
        """Set the languages: of the tokenizer, where it has some; else the prefix names them."""
        codes = self._languages()
        if not codes:
            if not prefix:
                raise InvalidRequest(
                    f"this model knows no translation from '{wishes.source}' to '{wishes.target}'",
                    hint="A model of one pair of languages needs neither 'source' nor 'target'.",
                    param="target",
                )
            return
        for name, language in (("source", wishes.source), ("target", wishes.target)):
            if language is not None and language not in codes:
                some = ", ".join(sorted(codes)[:_NAMED])
                raise InvalidRequest(
                    f"'{language}' is no language of this model; it has {some}"
                    + (f" and {len(codes) - _NAMED} more" if len(codes) > _NAMED else ""),
                    param=name,
                )
        if wishes.source is not None:
            self._tokenizer.src_lang = wishes.source
        if wishes.target is not None:
            settings["forced_bos_token_id"] = codes[wishes.target]

    def _languages(self) -> dict[str, int]:
        """Return the tokens of the languages that a tokenizer knows, by its own codes."""
        tokenizer = self._tokenizer
        if self._own_language is None:
            return {}
        codes = getattr(tokenizer, "lang_code_to_id", None)
        if not codes:  # they are the special tokens that have no other name
            codes = set(tokenizer.all_special_tokens) - set(tokenizer.special_tokens_map.values())
        return {str(code): tokenizer.convert_tokens_to_ids(str(code)) for code in codes}


class _Look(StoppingCriteria):  # type: ignore[misc]
    """Looks between two tokens whether anybody still waits; raises if not."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return that no row is done for our sake."""
        self._look()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
