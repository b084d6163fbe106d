"""A loaded language model and its inference thread: from a job to its outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from blip.errors import ConfigError, InvalidRequest, ModelLoadFailed, UnsupportedField
from blip.kinds.chat import ChatInput
from blip.kinds.completion import CompletionInput
from blip_node.models.snapshot import DEFAULT_CONTEXT, context_of, fit_context
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.chat import chat_prompt
from blip_node.runtimes.completion import completion_prompt
from blip_node.runtimes.decoding import llama
from blip_node.runtimes.decoding.batched import Batched, Unfit
from blip_node.runtimes.decoding.capacity import cache_tokens, divide
from blip_node.runtimes.decoding.constraint import Constraint, Guide
from blip_node.runtimes.decoding.detokenizer import Detokenizer
from blip_node.runtimes.decoding.lark import Lark, TokenOf, answer, calls, either
from blip_node.runtimes.decoding.loop import Loop
from blip_node.runtimes.decoding.prompt import Prompt, room
from blip_node.runtimes.decoding.sampler import Sampler
from blip_node.runtimes.decoding.sequence import Sequence, outcome
from blip_node.runtimes.decoding.stepper import Serial, Stepper
from blip_node.runtimes.decoding.stops import StopMatcher
from blip_node.runtimes.decoding.tool_stream import ToolStream
from blip_node.runtimes.decoding.vocabulary import Vocabulary
from blip_node.runtimes.loading import failure, load_pretrained, load_tokenizer, read_config
from blip_node.runtimes.tool_formats import HERMES, ToolFormat, format_of

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
        self._guide = Guide(self._vocabulary, sorted(self._stop_ids))
        #: How the model writes calls of functions.
        self._form = format_of(str(self._tokenizer.chat_template or "")) or HERMES
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
        tools = wishes.tools if isinstance(wishes, ChatInput) else []
        if tools or wishes.grammar is not None:
            sequence.constraint = await asyncio.to_thread(self._constraint, wishes)
        if tools and sequence.constraint is not None:
            sequence.tools = ToolStream(self._form, sequence.constraint)
        finish = sequence.resume(wishes.generated)
        if finish is None:
            sampler = Sampler(wishes, prompt.ids, self._device, sequence.constraint)
            finish = await self._loop.decode(job, sequence, sampler)
        return outcome(sequence, finish, len(wishes.generated))

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
            Detokenizer(self._vocabulary, prompt.before, self._shown(wishes)),
            StopMatcher(wishes.stop),
            prompt.lead,
        )

    def _shown(self, wishes: ChatInput | CompletionInput) -> dict[int, str]:
        """Return the special tokens that are to be read: the markers of calls, if there may be."""
        if not (isinstance(wishes, ChatInput) and wishes.tools):
            return {}
        markers = (self._form.marker, self._form.after)
        found = {self._vocabulary.marker(marker): marker for marker in markers}
        return {token: marker for token, marker in found.items() if token is not None}

    def _constraint(self, wishes: ChatInput | CompletionInput) -> Constraint:
        """Return what holds for an answer; it takes milliseconds, or more where much is asked."""
        if isinstance(wishes, ChatInput) and wishes.tools:
            lark, active = _tool_rules(wishes, self._form, self._vocabulary.marker)
            return self._guide.constraint(lark, active=active)
        assert wishes.grammar is not None, "asked where nothing constrains"
        return self._guide.constraint(answer(wishes.grammar), active=True)


def _tool_rules(wishes: ChatInput, form: ToolFormat, token: TokenOf) -> tuple[Lark, bool]:
    """Return the grammar of an answer that may call tools, and whether it holds from the start."""
    many = wishes.parallel_tool_calls
    if wishes.tool is not None:
        named = [tool for tool in wishes.tools if tool.name == wishes.tool]
        if not named:
            raise InvalidRequest(f"'tool': there is no tool '{wishes.tool}'", param="tool_choice")
        return calls(form, named, token, many=False, inside=False), True
    if wishes.tool_choice == "required":
        return calls(form, wishes.tools, token, many=many, inside=False), True
    if wishes.grammar is not None:
        return either(wishes.grammar, form, wishes.tools, token, many=many), True
    return calls(form, wishes.tools, token, many=many, inside=True), False


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
        return wishes.chars
    return len(wishes.prompt)


def _stop_ids(ids: int | list[int] | None, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: the model's word, else the tokenizer's."""
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)
