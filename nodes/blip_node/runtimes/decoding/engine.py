"""A loaded language model and its inference thread: from a job to its outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blip.errors import ConfigError, ModelLoadFailed, UnsupportedField
from blip.kinds.chat import ChatInput
from blip.kinds.completion import CompletionInput
from blip.kinds.text import PREFILL_SHARE, Finish, delta_to_wire
from blip_node.models.snapshot import DEFAULT_CONTEXT, context_of, fit_context
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.chat import chat_prompt
from blip_node.runtimes.completion import completion_prompt
from blip_node.runtimes.decoding import llama
from blip_node.runtimes.decoding.batched import Batched, Unfit
from blip_node.runtimes.decoding.capacity import cache_tokens, divide
from blip_node.runtimes.decoding.detokenizer import Detokenizer
from blip_node.runtimes.decoding.loop import Loop
from blip_node.runtimes.decoding.prompt import Prompt, room
from blip_node.runtimes.decoding.sampler import Sampler
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.stepper import Serial, Stepper
from blip_node.runtimes.decoding.stops import StopMatcher
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.loading import failure, load_pretrained, load_tokenizer, read_config

log = logging.getLogger(__name__)

#: Prompts of more characters are tokenized off the event loop: this many take about 1 ms.
INLINE_CHARS = 4096


class Engine:
    """Prompts are rendered on the event loop's side; the model runs on a thread of its own."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        loaded = (_load_gguf if spec.gguf else _load)(spec, report)
        self._tokenizer, self._context = loaded.tokenizer, loaded.context
        self._device = spec.device
        self._name = spec.model
        self._vocabulary = Vocabulary(self._tokenizer.backend_tokenizer, loaded.rows)
        self._stop_ids = loaded.stop_ids
        stepper = loaded.stepper
        #: Whether one forward pass serves all requests.
        self.batched = not isinstance(stepper, Serial)
        self._loop = Loop(stepper, self._vocabulary)
        self._loop.start()
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Decode one answer; see :meth:`blip_node.runtimes.text.TextRuntime.run`."""
        wishes: ChatInput | CompletionInput = job.input
        if _chars(wishes) > INLINE_CHARS:
            prompt = await asyncio.to_thread(self._prompt, wishes)
        else:
            prompt = self._prompt(wishes)
        sequence = self._sequence(prompt, wishes)
        finish = sequence.resume(wishes.generated)
        if finish is None:
            sampler = Sampler(wishes, prompt.ids, self._device)
            finish = await self._loop.decode(job, sequence, sampler)
        return _outcome(sequence, finish, len(wishes.generated))

    def close(self) -> None:
        """Stop the inference thread."""
        self._loop.stop()

    def _prompt(self, wishes: ChatInput | CompletionInput) -> Prompt:
        if isinstance(wishes, ChatInput):
            self._refuse_pictures(wishes)
            return chat_prompt(wishes, self._tokenizer, self._vocabulary)
        begin = self._tokenizer.bos_token_id
        begin = self._tokenizer.eos_token_id if begin is None else begin
        return completion_prompt(wishes, self._vocabulary, begin)

    def _refuse_pictures(self, wishes: ChatInput) -> None:
        for number, message in enumerate(wishes.messages):
            if message.pictures:
                raise UnsupportedField(
                    f"'messages.{number}.content' has a picture, and {self._name} reads text only",
                    hint="Ask a model that sees: those of GET /v1/models with chat and caption.",
                    param=f"messages.{number}.content",
                )

    def _sequence(self, prompt: Prompt, wishes: ChatInput | CompletionInput) -> Sequence:
        self._vocabulary.check(wishes.generated, "generated")
        self._vocabulary.check(wishes.logit_bias, "logit_bias")
        param = "messages" if isinstance(wishes, ChatInput) else "prompt"
        return Sequence(
            prompt.ids,
            room(len(prompt.ids), wishes.max_tokens, self._context, param),
            self._stop_ids,
            Detokenizer(self._vocabulary, prompt.before),
            StopMatcher(wishes.stop),
            prompt.lead,
        )


class _Loaded(NamedTuple):
    """A model and what belongs to it. ``rows`` are those of its logits."""

    tokenizer: Any
    stepper: Stepper
    context: int
    rows: int
    stop_ids: frozenset[int]


def _load(spec: LoadSpec, report: Callable[[float], None]) -> _Loaded:
    model, tokenizer = load_pretrained(spec, "AutoModelForCausalLM", report)
    context = _context(spec)
    return _Loaded(
        tokenizer,
        _stepper(model, spec, context),
        context,
        model.get_input_embeddings().num_embeddings,
        _stop_ids(model.generation_config.eos_token_id, tokenizer),
    )


def _load_gguf(spec: LoadSpec, report: Callable[[float], None]) -> _Loaded:
    tokenizer = load_tokenizer(spec)
    report(0.1)
    context = _context(spec)
    model = llama.load(Path(spec.gguf), spec, max(context, cache_tokens(spec.slots, context)))
    report(0.9)
    return _Loaded(
        tokenizer, model, context, model.vocabulary, model.stop_ids | _stop_ids(None, tokenizer)
    )


def _context(spec: LoadSpec) -> int:
    try:
        own = context_of(read_config(Path(spec.path)))
        return fit_context(spec.context, own, spec.model) or DEFAULT_CONTEXT
    except ConfigError as error:
        raise ModelLoadFailed(error.message) from None


def _stepper(model: Any, spec: LoadSpec, context: int) -> Stepper:
    """Return what steps this model: in batches if it can be, else one sequence after the other."""
    serial = Serial(model, spec.device, spec.slots)
    serial.check()
    batched = Batched(model, spec.device, spec.slots, divide(spec.slots, context))
    try:
        batched.check()
    except Unfit as why:
        log.info("%s is decoded one request after the other: %s", spec.model, why)
        return serial
    except Exception as error:
        raise failure(error) from error
    return batched


def _chars(wishes: ChatInput | CompletionInput) -> int:
    if isinstance(wishes, ChatInput):
        return sum(len(message.content) for message in wishes.messages)
    return len(wishes.prompt)


def _stop_ids(ids: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: the model's word, else the tokenizer's."""
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _outcome(sequence: Sequence, finish: Finish, resumed: int) -> Outcome:
    """Count: usage as the client sees it, over all attempts; units as this attempt worked."""
    prompt, completion = len(sequence.prompt), len(sequence.generated)
    return Outcome(
        delta_to_wire(finish),
        usage={"prompt_tokens": prompt, "completion_tokens": completion},
        units=(prompt + resumed) * PREFILL_SHARE + completion - resumed,
    )
