"""A loaded model that writes about pictures, and its thread: from a job to its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from blip.errors import ConfigError, InvalidRequest, ModelLoadFailed, UnsupportedField
from blip.kinds.base import TaskInput
from blip.kinds.caption import TYPICAL_CAPTION_TOKENS, CaptionInput
from blip.kinds.chat import ChatInput
from blip_node.models.abilities import abilities
from blip_node.models.snapshot import (
    DEFAULT_CONTEXT,
    context_of,
    fit_context,
    has_chat_template,
)
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.decoding.constraint import Guide
from blip_node.runtimes.decoding.detokenizer import Detokenizer
from blip_node.runtimes.decoding.lark import answer
from blip_node.runtimes.decoding.prompt import room
from blip_node.runtimes.decoding.sampler import Sampler
from blip_node.runtimes.decoding.sequence import Sequence, outcome
from blip_node.runtimes.decoding.stops import StopMatcher
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import check_tokenizer, load_tokenizer, read_config
from blip_node.runtimes.sight import prompts
from blip_node.runtimes.sight.generation import write
from blip_node.runtimes.sight.loading import load_seeing

#: The type of models that are put together of two, and have no processor for both.
_PAIR = "vision-encoder-decoder"


#: What of a request is heeded here. Whatever else a chat can ask for is refused by name, not
#: dropped: dropping it would give a wrong answer that looks right.
_HEEDED = frozenset(
    {
        "frequency_penalty",
        "generated",
        "grammar",
        "image",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "messages",
        "presence_penalty",
        "prompt",
        "repetition_penalty",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "top_p",
    }
)
_HEEDED_IN_MESSAGES = frozenset({"role", "content", "name", "pictures"})


class Narrator:
    """Writes on one thread, one answer after the other."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._name = spec.model
        self._lane = Lane("blip-narrate")
        self._lane.first(lambda: self._load(spec, report))
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Write one answer; see :meth:`blip_node.runtimes.vision_text.VisionTextRuntime.run`."""
        return await self._lane.run(job, self._write)

    def close(self) -> None:
        """Stop after the current token, and the thread with it."""
        self._lane.close()

    # --- on the thread ----------------------------------------------------------------------

    def _load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        config = read_config(Path(spec.path))
        pair = config.get("model_type") == _PAIR
        processor = "AutoImageProcessor" if pair else "AutoProcessor"
        self._model, self._processor = load_seeing(
            spec, "AutoModelForImageTextToText", processor, report
        )
        tokenizer = _tokenizer(spec, self._processor, pair=pair)
        architecture = str((config.get("architectures") or [""])[0])
        able = abilities(architecture, str(config.get("model_type", "")), config)
        self._chats = "chat" in able and has_chat_template(Path(spec.path))
        try:
            own = context_of(config["decoder"] if pair else config)
            self._context = fit_context(spec.context, own, spec.model) or DEFAULT_CONTEXT
        except ConfigError as error:
            raise ModelLoadFailed(error.message) from None
        size = self._model.config.get_text_config(decoder=True).vocab_size
        self._vocabulary = Vocabulary(tokenizer.backend_tokenizer, size)
        self._stop_ids = _stop_ids(self._model, tokenizer, chats=self._chats)
        self._guide = Guide(self._vocabulary, sorted(self._stop_ids))

    def _write(self, job: Job) -> Outcome:
        wishes: ChatInput | CaptionInput = job.input
        captions = isinstance(wishes, CaptionInput)
        _check(wishes, self._name)
        inputs = self._inputs(wishes)
        self._lane.look(job)
        ids = inputs["input_ids"][0].tolist() if "input_ids" in inputs else []
        if captions:  # a caption ends by itself; what its limit leaves over is nobody's loss
            most = wishes.max_tokens or TYPICAL_CAPTION_TOKENS
            limit = min(most, room(len(ids), None, self._context, "prompt"))
        else:
            limit = room(len(ids), wishes.max_tokens, self._context, "messages")
        self._vocabulary.check(wishes.generated, "generated")
        self._vocabulary.check(wishes.logit_bias, "logit_bias")
        sequence = Sequence(
            ids,
            limit,
            self._stop_ids,
            Detokenizer(self._vocabulary),
            StopMatcher(wishes.stop),
        )
        if wishes.grammar is not None:
            sequence.constraint = self._guide.constraint(answer(wishes.grammar), active=True)
        finish = sequence.resume(wishes.generated)
        if finish is None:
            finish = write(
                self._model,
                self._moved(prompts.resumed(inputs, wishes.generated)),
                job,
                self._lane.look,
                sequence,
                Sampler(wishes, ids, str(self._model.device), sequence.constraint),
                self._vocabulary,
                streams=not captions,
            )
        return outcome(sequence, finish, len(wishes.generated))

    def _inputs(self, wishes: ChatInput | CaptionInput) -> dict[str, Any]:
        if isinstance(wishes, CaptionInput):
            if not self._chats:
                return prompts.caption_inputs(wishes, self._name, self._model, self._processor)
            return prompts.chat_inputs(prompts.chat_of(wishes), self._processor, "image")
        if not self._chats:
            raise InvalidRequest(
                f"{self._name} has no chat template",
                hint="Ask for captions: POST /v1/vision/caption.",
            )
        return prompts.chat_inputs(wishes, self._processor)

    def _moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs on the model's device; pixels in its dtype, ids as they are."""
        device, dtype = self._model.device, self._model.dtype
        moved = dict(inputs)
        for name, each in inputs.items():
            if isinstance(each, torch.Tensor):
                moved[name] = each.to(device, dtype if each.is_floating_point() else each.dtype)
        return moved


def _check(wishes: ChatInput | CaptionInput, name: str) -> None:
    """Raise :class:`~blip.errors.UnsupportedField` for what would be without effect."""
    asked = dict.fromkeys(_given(wishes) - _HEEDED, "")
    if isinstance(wishes, ChatInput):
        for number, message in enumerate(wishes.messages):
            more = _given(message) - _HEEDED_IN_MESSAGES
            asked |= dict.fromkeys(more, f"messages.{number}.")
    for field, at in asked.items():
        raise UnsupportedField(
            f"'{at}{field}' is not supported by models that see, such as {name}",
            hint="Leave it out, or ask a model of text alone.",
            param=at + field,
        )


def _given(value: TaskInput) -> set[str]:
    """Return the fields that are not at their defaults."""
    return {
        name
        for name, field in type(value).model_fields.items()
        if getattr(value, name) != field.get_default(call_default_factory=True)
    }


def _tokenizer(spec: LoadSpec, processor: Any, *, pair: bool) -> Any:
    if pair:
        return load_tokenizer(spec)
    check_tokenizer(spec, processor.tokenizer)
    return processor.tokenizer


def _stop_ids(model: Any, tokenizer: Any, *, chats: bool) -> frozenset[int]:
    """Return the tokens that end an answer: the model's word, else the tokenizer's.

    Captioners of BERT's kind end with the separator instead, or as well.
    """
    ids = model.generation_config.eos_token_id
    found = set(ids) if isinstance(ids, list) else {ids}
    if not chats:
        found.add(tokenizer.sep_token_id)
    found.discard(None)
    return frozenset(found or ({tokenizer.eos_token_id} - {None}))
