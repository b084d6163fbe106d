"""The side of ``blip bench text`` that knows torch, as a process of its own.

It holds one model twice: as bare transformers, and in a text runtime. It is told what to do in
lines of JSON on stdin and answers each with one on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from blip_node.runtimes.environment import WORKER_ENV

os.environ.update(WORKER_ENV)

import torch
import transformers
from tokenizers import Tokenizer, decoders, models

from blip.kinds import KINDS
from blip.kinds.text import delta_from_wire, finish_from_wire
from blip.lifecycle import die_with_parent
from blip_node.models.prepare import prepare
from blip_node.models.spec import ModelSpec
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_pretrained
from blip_node.runtimes.text import TextRuntime

#: A Llama of 28 million parameters: large enough that the weights do not fit a CPU's cache, as is
#: so with every model that is of use, and small enough to measure within minutes.
SHAPE: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def make_llama(folder: Path) -> Path:
    """Save a Llama with random weights, and a tokenizer whose tokens are a word each."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE))
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    model.save_pretrained(folder)
    words = {f" w{number}": number for number in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=" w0"))
    tokenizer.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


class Clocked:
    """A job that writes down when each of its tokens came."""

    def __init__(self, prompt: list[int], tokens: int) -> None:
        self.kind = KINDS["completion"]
        self.input: Any = self.kind.input.model_validate(
            {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
        )
        self.cancelled = False
        self.writable = True
        self.parts: list[bytes | memoryview] = []
        self.times: list[float] = []

    def emit(self, payload: bytes | memoryview) -> None:
        """Write a token down."""
        self.times.append(time.perf_counter())
        self.parts.append(payload)

    async def drained(self) -> None:
        """It always is."""

    def on_change(self, wake: Callable[[], None]) -> None:
        """Nothing ever changes."""


class Bench:
    """A model to measure, loaded twice."""

    def __init__(self, path: Path, dtype: str, context: int | None, slots: int) -> None:
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        spec = LoadSpec("the model", str(path), device, slots, dtype=dtype, context=context)
        self._model, _ = load_pretrained(spec, "AutoModelForCausalLM", lambda share: None)
        self._runtime = TextRuntime()
        self._runtime.load(spec, lambda share: None)
        self.facts = {
            "path": str(path),
            "device": device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "parameters": sum(each.numel() for each in self._model.parameters()),
            "vocabulary": self._model.get_input_embeddings().num_embeddings,
            "batched": self._runtime.batched,
        }

    def generate(self, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
        """Answer one request after the other with transformers' own ``generate``."""
        ids, times = [], []
        with torch.inference_mode():
            for prompt, tokens in requests:
                given = torch.tensor([prompt], device=self._model.device)
                clock = _Streamer()
                began = time.perf_counter()
                whole = self._model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=tokens,
                    do_sample=False,
                    streamer=clock,
                )
                ids.append(whole[0, len(prompt) :].tolist())
                times.append([began, *clock.times])
        return {"ids": ids, "times": times}

    async def batch(self, requests: list[tuple[list[int], int]], company: int) -> dict[str, Any]:
        """Answer them through the runtime, so many at a time."""
        ids: dict[int, list[int]] = {}
        times: dict[int, list[float]] = {}
        waiting = list(enumerate(requests))[::-1]

        async def client() -> None:
            while waiting:
                number, (prompt, tokens) = waiting.pop()
                job = Clocked(prompt, tokens)
                began = time.perf_counter()
                finish = finish_from_wire((await self._runtime.run(job)).payload)
                times[number] = [began, *job.times, time.perf_counter()]
                parts = map(delta_from_wire, job.parts)
                ids[number] = [token for part in parts for token in part.ids] + finish.ids

        await asyncio.gather(*(client() for _ in range(company)))
        order = range(len(requests))
        return {"ids": [ids[n] for n in order], "times": [times[n] for n in order]}


class _Streamer:
    """What ``generate`` shows its tokens to; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt = True

    def put(self, value: Any) -> None:
        """Note the time."""
        if not self._prompt:
            self.times.append(time.perf_counter())
        self._prompt = False

    def end(self) -> None:
        """Nothing is left to do."""


def main() -> None:
    """Serve until stdin ends."""
    die_with_parent(int(sys.argv[1]), signal.SIGKILL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print; stdout is for answers
    asked = json.loads(sys.stdin.readline())
    if asked["source"]:
        spec = ModelSpec(asked["name"], asked["source"], dtype=asked["dtype"])
        path = prepare(spec, Path(asked["data_dir"]), lambda share: None)
    else:
        path = make_llama(Path(asked["folder"]))
    bench = Bench(path, asked["dtype"], asked["context"], asked["slots"])
    _answer(answers, bench.facts)
    for line in sys.stdin:
        asked = json.loads(line)
        requests = [(prompt, tokens) for prompt, tokens in asked["requests"]]
        began, cpu = time.perf_counter(), time.process_time()
        if asked["company"]:
            found = asyncio.run(bench.batch(requests, asked["company"]))
        else:
            found = bench.generate(requests)
        found["seconds"] = time.perf_counter() - began
        found["cpu"] = time.process_time() - cpu
        _answer(answers, found)


def _answer(to: TextIO, value: dict[str, Any]) -> None:
    print(json.dumps(value), file=to, flush=True)


if __name__ == "__main__":
    main()
