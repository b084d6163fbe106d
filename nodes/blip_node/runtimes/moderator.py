"""A loaded classifier that judges texts or pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip.errors import BlipError, InvalidRequest, ModelLoadFailed
from blip.kinds.moderation import MODERATION, ModerationInput, Verdict, verdicts_to_wire
from blip_node.models.snapshot import DEFAULT_CONTEXT, context_of, fit_context
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.batching import batches
from blip_node.runtimes.diffusion.pictures import open_picture
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import load_model, load_part, load_pretrained, read_config
from blip_node.runtimes.verdicts import Rules, read_rules

#: How much of a window the next piece of a long text repeats: what stands across the border of two
#: must stand whole in one of them.
OVERLAP = 0.25

#: Pictures in a forward pass.
_PICTURES = 8


class Moderator:
    """Runs on one thread; looks between batches whether a job still matters."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-moderate")
        self._device = spec.device
        self._tokenizer: Any = None
        self._processor: Any = None
        self._model: Any = None
        self._rules: Rules
        self._lane.first(lambda: self._load(spec, report))

    async def run(self, job: Job) -> Outcome:
        """Judge a job; see :meth:`blip_node.runtimes.moderation.ModerationRuntime.run`."""
        return await self._lane.run(job, self._judge)

    def close(self) -> None:
        """Stop the thread after its current batch."""
        self._lane.close()

    def _load(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        folder = Path(spec.path)
        config = read_config(folder)
        names = config.get("architectures") or [""]
        if str(names[0]).endswith("ForImageClassification"):
            self._model = load_model(spec, "AutoModelForImageClassification", report, unused=())
            self._processor = load_part(spec, "AutoImageProcessor")
        else:
            self._model, self._tokenizer = load_pretrained(
                spec, "AutoModelForSequenceClassification", report, unused=()
            )
            own = context_of(config)
            self._window = fit_context(spec.context, own, spec.model) or DEFAULT_CONTEXT
        settings = self._model.config
        outputs = [str(settings.id2label[at]) for at in range(settings.num_labels)]
        several = settings.problem_type == "multi_label_classification" or len(outputs) == 1
        try:
            self._rules = read_rules(outputs, spec.labels, spec.thresholds, exclusive=not several)
            self._rules.judge(self._try())
        except BlipError as error:
            raise ModelLoadFailed(
                f"model '{spec.model}': {error.message}", hint=error.hint
            ) from None
        report(1.0)

    def _try(self) -> list[float]:
        if self._tokenizer is None:
            return self._see([Image.new("RGB", (32, 32))])[0]
        return self._read([self._pieces("a")[0]])[0]

    def _judge(self, job: Job) -> Outcome:
        asked: ModerationInput = job.input
        takes, other = ("images", "texts") if self._tokenizer is None else ("texts", "images")
        if getattr(asked, other):
            raise InvalidRequest(f"'{other}': this model judges {takes} only", param=other)
        if self._tokenizer is None:
            verdicts, tokens = self._judge_pictures(job, asked.images), 0
        else:
            verdicts, tokens = self._judge_texts(job, asked.texts)
        # the estimate of texts before they are tokens, with what they turned out to be
        units = MODERATION.units(ModerationInput(images=asked.images)) + len(asked.texts) + tokens
        return Outcome(verdicts_to_wire(verdicts), {"prompt_tokens": tokens}, units)

    def _judge_texts(self, job: Job, texts: Sequence[str]) -> tuple[list[Verdict], int]:
        cut = []
        for text in texts:
            self._lane.look(job)  # cutting up the longest takes as long as reading a batch
            cut.append(self._pieces(text))
        pieces = [piece for each in cut for piece in each]
        chances: list[list[float]] = [[] for _ in pieces]
        for batch in batches([len(piece) for piece in pieces]):
            self._lane.look(job)
            for at, row in zip(batch, self._read([pieces[at] for at in batch]), strict=True):
                chances[at] = row
        ends = [0]
        for each in cut:
            ends.append(ends[-1] + len(each))
        verdicts = [self._worst(chances[begin:end]) for begin, end in pairwise(ends)]
        return verdicts, sum(map(len, pieces))

    def _judge_pictures(self, job: Job, files: Sequence[bytes]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        pictures = []
        for at, file in enumerate(files):
            self._lane.look(job)
            pictures.append(open_picture(file, f"images.{at}").convert("RGB"))
        for at in range(0, len(pictures), _PICTURES):
            self._lane.look(job)
            rows = self._see(pictures[at : at + _PICTURES])
            verdicts += map(self._rules.judge, rows)
        return verdicts

    def _worst(self, rows: list[list[float]]) -> Verdict:
        """Return the verdict on a text whose pieces have these chances: the worst of each."""
        each = [self._rules.judge(row) for row in rows]
        scores = {name: max(one.scores[name] for one in each) for name in each[0].scores}
        flagged = [name for name in scores if any(name in one.flagged for one in each)]
        return Verdict(scores, flagged)

    def _pieces(self, text: str) -> list[list[int]]:
        """Return a text's ids with the model's markers, in as many pieces as windows are needed."""
        tokenizer = self._tokenizer
        markers = tokenizer.num_special_tokens_to_add()
        pieces: list[list[int]] = tokenizer(
            text,
            truncation=True,
            max_length=self._window,
            stride=int(max(0, self._window - markers) * OVERLAP),
            return_overflowing_tokens=True,
        )["input_ids"]
        if not all(pieces):
            raise InvalidRequest("'texts': the model has no tokens for a text", param="texts")
        return pieces

    def _read(self, pieces: list[list[int]]) -> list[list[float]]:
        if self._tokenizer.pad_token is None and len(pieces) > 1:
            # nothing to fill the shorter ones up with: each by itself
            return [row for piece in pieces for row in self._read([piece])]
        padded = self._tokenizer.pad(
            {"input_ids": pieces}, padding=len(pieces) > 1, return_tensors="pt"
        )
        with torch.inference_mode():
            return self._chances(self._model(**padded.to(self._device)).logits)

    def _see(self, pictures: list[Image.Image]) -> list[list[float]]:
        pixels = self._processor(pictures, return_tensors="pt").to(self._device, self._model.dtype)
        with torch.inference_mode():
            return self._chances(self._model(**pixels).logits)

    def _chances(self, logits: torch.Tensor) -> list[list[float]]:
        logits = logits.float()
        chances = logits.softmax(-1) if self._rules.exclusive else logits.sigmoid()
        rows: list[list[float]] = chances.tolist()
        return rows
