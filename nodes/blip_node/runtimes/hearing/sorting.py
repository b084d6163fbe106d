"""A loaded model that tells what a sound is of: one of its own classes, or of the request's.

A sound that is longer than the model listens to at once is cut into pieces of the same length, and
the pieces' scores are averaged. transformers' extractors would take a piece of it, some by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from blip.errors import InvalidRequest, ModelLoadFailed
from blip.kinds.sound_classification import AudioClassificationInput, SoundInput, ZeroShotAudioInput
from blip.kinds.vision import Guess, to_wire
from blip_node.audio.decode import decode
from blip_node.runtimes.base import Job, LoadSpec, Outcome
from blip_node.runtimes.hearing.loading import on_model
from blip_node.runtimes.lane import Lane
from blip_node.runtimes.loading import load_model, load_part, load_tokenizer, read_config
from blip_node.runtimes.sight.classify import no_numbers

#: Seconds that are listened to at once where the extractor sets no limit: attention takes memory
#: by the square of the length, and such models were trained on less.
_AT_ONCE = 30.0

#: Samples between two frames of the audio spectrogram transformer's extractor, whatever its rate.
_AST_HOP = 160

#: Weights that a checkpoint may lack: what only training uses.
_UNUSED = ("masked_spec_embed",)

#: What makes the scores of labels, float [labels], of what an extractor makes of a piece.
Score = Callable[[Any], Tensor]


class Sorter(Protocol):
    """A loaded model. It belongs to the lane's thread."""

    extractor: Any

    def begin(self, wishes: Any) -> tuple[list[str], Score]:
        """Return the labels, and what makes their scores of a piece.

        Raises :class:`~blip.errors.InvalidRequest` for wishes that cannot be met.
        """
        ...


class Engine:
    """Names sounds on one thread, one after the other."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self._lane = Lane("blip-sort")
        self._sorter = self._lane.first(lambda: _load(spec, report))
        self._rate = int(self._sorter.extractor.sampling_rate)
        report(1.0)

    async def run(self, job: Job) -> Outcome:
        """Name one sound; see :meth:`blip_node.runtimes.sound.SoundRuntime.run`."""
        return await self._lane.run(job, self._sort)

    def close(self) -> None:
        """Stop after the current piece, and the thread with it."""
        self._lane.close()

    def _sort(self, job: Job) -> Outcome:
        wishes: SoundInput = job.input
        look = partial(self._lane.look, job)
        samples = decode(wishes.file, self._rate, "file", look)
        with torch.inference_mode():
            labels, score = self._sorter.begin(wishes)
            scores = self._mean(samples, score, look)
        if not scores.isfinite().all():
            raise no_numbers()
        top = min(len(labels), wishes.top if isinstance(wishes, AudioClassificationInput) else 1000)
        best = scores.topk(top)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        guesses = [Guess(labels[index], value) for index, value in pairs]
        seconds = len(samples) / self._rate
        return Outcome(to_wire(guesses), usage={"audio_ms": round(seconds * 1000)}, units=seconds)

    def _mean(self, samples: Any, score: Score, look: Callable[[], None]) -> Tensor:
        """Return the mean of the scores of a sound's pieces."""
        found = []
        for piece in pieces(samples, limit_of(self._sorter.extractor)):
            look()
            inputs = self._sorter.extractor(piece, sampling_rate=self._rate, return_tensors="pt")
            found.append(score(inputs).float().cpu())
        return torch.stack(found).mean(0)


def pieces(samples: Any, limit: int) -> Iterator[Any]:
    """Cut samples into as few pieces of (almost) equal length as fit ``limit``."""
    count = max(1, -(-len(samples) // limit))
    edges = [round(at * len(samples) / count) for at in range(count + 1)]
    return (samples[begin:end] for begin, end in pairwise(edges))


def limit_of(extractor: Any) -> int:
    """Return how many samples a model listens to at once, as its extractor says."""
    for name in ("nb_max_samples", "n_samples"):  # CLAP's, Whisper's
        if (samples := getattr(extractor, name, None)) is not None:
            return int(samples)
    if isinstance(extractor, transformers.ASTFeatureExtractor):
        return int(extractor.max_length * _AST_HOP)
    return int(_AT_ONCE * extractor.sampling_rate)


class FixedClasses:
    """A model with classes of its own; see :class:`Sorter`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self.extractor = load_part(spec, "AutoFeatureExtractor")
        self._model = load_model(spec, "AutoModelForAudioClassification", report, unused=_UNUSED)

    def begin(self, wishes: AudioClassificationInput) -> tuple[list[str], Score]:
        """Return the model's classes, and what scores them."""
        config = self._model.config
        # as transformers' pipeline chooses
        own = {
            "regression": "none",
            "multi_label_classification": "sigmoid",
        }.get(config.problem_type, "softmax")
        activation = wishes.activation or own

        def score(inputs: Any) -> Tensor:
            logits: Tensor = self._model(**on_model(self._model, inputs)).logits[0].float()
            if activation == "softmax":
                return logits.softmax(-1)
            return logits.sigmoid() if activation == "sigmoid" else logits

        return [str(config.id2label[at]) for at in range(config.num_labels)], score


class AnyLabels:
    """A model that compares sounds with the labels of each request; see :class:`Sorter`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        self.extractor = load_part(spec, "AutoFeatureExtractor")
        self._tokenizer = load_tokenizer(spec)
        self._model = load_model(spec, "ClapModel", report, unused=())

    def begin(self, wishes: ZeroShotAudioInput) -> tuple[list[str], Score]:
        """Return the request's labels, and what scores them; reads them once for all pieces."""
        if "{}" not in wishes.template:
            raise InvalidRequest("'template' has no {}, where the label stands.", param="template")
        model = self._model
        texts = self._tokenizer(
            [wishes.template.replace("{}", label) for label in wishes.labels],
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        read = model.get_text_features(**texts.to(model.device)).pooler_output

        def score(inputs: Any) -> Tensor:
            heard = model.get_audio_features(**on_model(model, inputs)).pooler_output
            logits: Tensor = (heard @ read.T)[0].float() * model.logit_scale_a.float().exp()
            return logits.softmax(-1)

        return wishes.labels, score


def _load(spec: LoadSpec, report: Callable[[float], None]) -> Sorter:
    try:
        names = read_config(Path(spec.path)).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        raise ModelLoadFailed(
            f"model '{spec.model}': its config.json does not say what it is"
        ) from None
    if str(names[0]) == "ClapModel":
        return AnyLabels(spec, report)
    return FixedClasses(spec, report)
