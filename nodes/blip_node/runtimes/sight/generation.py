"""transformers' ``generate``, with our choice of tokens, told to the client one by one.

Models that see differ in how they place pictures among tokens, count positions and keep caches;
``generate`` knows each one's way, encoders and decoders among them. What blip adds hangs in its
two hooks: one chooses the next token as the request asks for it, the other passes it on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation import StoppingCriteriaList

from blip.kinds.text import Delta, Finish, delta_to_wire
from blip_node.runtimes.base import Job
from blip_node.runtimes.decoding.sampler import Choice, Sampler, told
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.vocabulary import Vocabulary

#: What models' own generation settings must not add to what a request asks for.
_NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "use_cache": True,
    # compiling takes a minute, for each new shape
    "disable_compile": True,
}


class _Choose(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token possible: the sampler's choice."""

    def __init__(self, sequence: Sequence, sampler: Sampler) -> None:
        self._sequence, self._sampler = sequence, sampler
        self.choice = Choice(-1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.choice = self._sampler.pick(scores[0].float(), self._sequence.generated)
        only = torch.full_like(scores, float("-inf"))
        only[0, self.choice.token] = 0.0
        return only


class Teller(StoppingCriteria):  # type: ignore[misc]
    """Takes each token as it is there, and stops where the answer ends or nobody waits for it.

    Text that may not be written yet, and all of it unless ``streams``, is kept until it may, at
    the latest until the end: an answer is small, and others wait for the thread.
    """

    def __init__(
        self,
        job: Job,
        look: Callable[[Job], None],
        sequence: Sequence,
        choose: _Choose,
        vocabulary: Vocabulary,
        *,
        streams: bool,
    ) -> None:
        self._job, self._look = job, look
        self._sequence, self._choose, self._vocabulary = sequence, choose, vocabulary
        self._streams = streams
        self._kept = Delta("", [])
        self._finish: Finish | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Take the last token. Raises what ``look`` raises."""
        self._look(self._job)
        logprob = told(self._choose.choice, self._vocabulary)
        step = self._sequence.accept(int(input_ids[0, -1]), logprob)
        if isinstance(step, Finish):
            self._finish = step
        else:
            self._kept = _joined(self._kept, step)
            if self._streams and self._job.writable:
                self._job.emit(delta_to_wire(self._kept))
                self._kept = Delta("", [])
        done = self._finish is not None
        return torch.tensor([done], device=input_ids.device)

    def finish(self) -> Finish:
        """Return the end of the answer, with what of it was kept."""
        # a model may have ended by a rule of its own
        end = self._finish or Finish("stop")
        whole = _joined(self._kept, Delta(end.text, end.ids, end.logprobs))
        return end._replace(text=whole.text, ids=whole.ids, logprobs=whole.logprobs)


def write(
    model: Any,
    inputs: dict[str, Any],
    job: Job,
    look: Callable[[Job], None],
    sequence: Sequence,
    sampler: Sampler,
    vocabulary: Vocabulary,
    *,
    streams: bool,
) -> Finish:
    """Generate one answer from a processor's tensors, emitting deltas if it ``streams``.

    ``look`` is called with the job after each token, and ends it by raising. Raises
    :class:`~blip.errors.RuntimeFailed` when the model computed no numbers.
    """
    choose = _Choose(sequence, sampler)
    teller = Teller(job, look, sequence, choose, vocabulary, streams=streams)
    model.generate(
        **inputs,
        **_NEUTRAL,
        max_new_tokens=sequence.limit - len(sequence.generated),
        logits_processor=LogitsProcessorList([choose]),
        stopping_criteria=StoppingCriteriaList([teller]),
    )
    return teller.finish()


def _joined(one: Delta, two: Delta) -> Delta:
    rows = [*(one.logprobs or ()), *(two.logprobs or ())]
    return Delta(one.text + two.text, one.ids + two.ids, rows or None)
