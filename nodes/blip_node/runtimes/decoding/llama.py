"""Stepping a GGUF model through llama.cpp: quantised as it is on disk, and on cards of any age.

Only the forward passes are llama.cpp's. Prompts, sampling, stops and streams are ours, so requests
mean the same as with transformers. The bindings are those of ``llama-cpp-python``
(https://llama-cpp-python.readthedocs.io), an optional extra.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import numpy
import torch

from blip.errors import ModelLoadFailed, NoCapacity, WorkerCrashed
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.decoding import share
from blip_node.runtimes.decoding.sequence import Sequence
from blip_node.runtimes.decoding.stepper import Stepped

log = logging.getLogger(__name__)

#: What ``llama_decode`` returns when the cache has no room for a batch.
_NO_ROOM = 1

#: llama.cpp's own levels from which on its words are worth our log.
_WARN = 3

#: Layers to put on the GPU: all of them, whatever the model has.
_ALL_LAYERS = 999


def load(file: Path, spec: LoadSpec, tokens: int) -> Llama:
    """Load a GGUF file with a cache of so many tokens, for ``spec.slots`` sequences.

    Raises :class:`~blip.errors.ModelLoadFailed` without the bindings, without GPU support in them
    where the device is one, and for a file that llama.cpp does not load; ``NoCapacity`` when there
    is no memory for the cache.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise ModelLoadFailed(
            f"model '{spec.model}': the runtime llama.cpp needs llama-cpp-python ({error})",
            hint="pip install 'blip-mesh[llama]', which compiles it; for a GPU see its README.",
        ) from None
    gpu = not spec.device.startswith("cpu")
    if gpu and not llama_cpp.llama_supports_gpu_offload():
        raise ModelLoadFailed(
            f"model '{spec.model}': llama-cpp-python was built without GPU support",
            hint="Build it for the GPU: CMAKE_ARGS=-DGGML_CUDA=on pip install llama-cpp-python "
            "--force-reinstall --no-cache-dir.",
        )
    return Llama(llama_cpp, file, spec, tokens)


class Llama:
    """Steps all sequences in one batch: a token of each that decodes, and pieces of prompts.

    They share a cache of so many tokens; ``slots`` numbers tell llama.cpp whose a token is.
    """

    def __init__(self, llama_cpp: Any, file: Path, spec: LoadSpec, tokens: int) -> None:
        self._llama = llama_cpp
        self._device = spec.device
        gpu = not spec.device.startswith("cpu")
        # kept: the library calls it as long as it lives
        self._logger = llama_cpp.llama_log_callback(_log)
        llama_cpp.llama_log_set(self._logger, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = _ALL_LAYERS if gpu else 0
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), model)
        if not self._model:
            raise ModelLoadFailed(f"model '{spec.model}': llama.cpp does not load {file.name}")
        self.slots = min(spec.slots, llama_cpp.llama_max_parallel_sequences())
        self._tokens = tokens
        self._most = share.ALONE + self.slots
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = tokens
        context.n_batch = context.n_ubatch = self._most
        context.n_seq_max = self.slots
        context.kv_unified = True  # one cache for all: a long conversation takes what others leave
        context.n_threads = context.n_threads_batch = spec.threads or torch.get_num_threads()
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise NoCapacity(
                f"model '{spec.model}': there is no memory for a cache of {tokens} tokens"
            )
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self._most, 0, 1)
        self._numbers = list(range(self.slots))
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        #: Rows of the logits.
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(vocabulary))
        #: Tokens that end an answer, by the file's own word.
        self.stop_ids = frozenset(
            token
            for token in range(self.vocabulary)
            if llama_cpp.llama_vocab_is_eog(vocabulary, token)
        )

    def provide(self, wanted: list[Sequence], idle: list[Sequence]) -> list[Sequence]:
        """Make room in the cache: see :class:`~blip_node.runtimes.decoding.stepper.Stepper`.

        Idle sequences and then the latest give theirs up; whoever comes last and finds none waits.
        """
        out: list[Sequence] = []
        donors = [*wanted, *(each for each in idle if each.cache is not None)]
        held = sum(each.computed for each in donors)
        for sequence in wanted:
            if sequence in out:
                continue
            more = _length(sequence) - sequence.computed
            while held + more > self._tokens and len(donors) > 1:
                donor = donors.pop()
                held -= donor.computed
                out.append(donor)
                self.release(donor)
                donor.computed = 0
                if donor is sequence:
                    break
            else:
                held += more
        return out

    def release(self, sequence: Sequence) -> None:
        """Free the cache of a sequence: see the protocol."""
        if sequence.cache is not None:
            self._llama.llama_memory_seq_rm(self._memory, sequence.cache, -1, -1)
            self._numbers.append(sequence.cache)
            sequence.cache = None

    def step(self, sequences: list[Sequence]) -> Stepped:
        """Compute a token of each, or a piece of its prompt: see the protocol."""
        work = self._deal(sequences)
        if not work:
            return Stepped([], None, [])
        rows = self._fill(work)
        code = self._llama.llama_decode(self._context, self._batch)
        if code != 0:
            return Stepped([], None, [(sequence, _failure(code)) for sequence, _ in work])
        ready, logits = [], []
        for (sequence, count), row in zip(work, rows, strict=True):
            sequence.computed += count
            if sequence.ready:
                ready.append(sequence)
                logits.append(self._row(row))
        return Stepped(ready, torch.stack(logits) if logits else None, [])

    def _deal(self, sequences: list[Sequence]) -> list[tuple[Sequence, int]]:
        """Return how many tokens of each are computed now: one, or a piece of those that lack."""
        lacking = [_length(sequence) - sequence.computed for sequence in sequences]
        long = [count for count in lacking if count > 1]
        budget = share.budget(self._device, decoding=len(long) < len(lacking))
        pieces = iter(share.deal(long, budget))
        counts = [1 if count == 1 else next(pieces) for count in lacking]
        return [each for each in zip(sequences, counts, strict=True) if each[1]]

    def _fill(self, work: list[tuple[Sequence, int]]) -> list[int]:
        """Write a batch; return the place of each sequence's last token in it."""
        batch, at, rows = self._batch, 0, []
        for sequence, count in work:
            if sequence.cache is None:
                sequence.cache = self._numbers.pop()
            for offset, token in enumerate(sequence.due(count)):
                batch.token[at] = token
                batch.pos[at] = sequence.computed + offset
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence.cache
                batch.logits[at] = False
                at += 1
            batch.logits[at - 1] = sequence.computed + count == _length(sequence)
            rows.append(at - 1)
        batch.n_tokens = at
        return rows

    def _row(self, place: int) -> torch.Tensor:
        pointer = self._llama.llama_get_logits_ith(self._context, place)
        found = numpy.ctypeslib.as_array(pointer, shape=(self.vocabulary,))
        return torch.from_numpy(found.copy()).to(self._device)


def _length(sequence: Sequence) -> int:
    return len(sequence.prompt) + len(sequence.generated)


def _failure(code: int) -> Exception:
    if code == _NO_ROOM:
        return NoCapacity("the key-value cache of llama.cpp has no room for this request")
    return WorkerCrashed(f"llama.cpp failed with code {code}")


def _log(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace").strip()
    if level >= _WARN and line:
        log.warning("llama.cpp: %s", line)
