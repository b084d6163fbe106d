"""``POST /v1/pipelines/{task}`` for pictures and sounds: the kinds that have routes of their own
as well, asked and answered as transformers' pipelines are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web

from blip.errors import RuntimeFailed
from blip.gateway import shares
from blip.gateway.api import OperationHandler
from blip.gateway.exchange import Exchange, Result
from blip.gateway.routes.pipelines import answers, media_answers
from blip.gateway.routes.pipelines import media_requests as requests


class MediaTask(NamedTuple):
    """One task: its words, what is asked and answered, what reads a node's, a request to try."""

    name: str
    summary: str
    body: Any
    answer: Any
    read: Callable[[Any, Result], Any]
    example: Mapping[str, Any]


_PICTURE = {"inputs": "@picture.png"}
_SOUND = {"inputs": "@sound.wav"}
_LABELS = {"parameters": '{"candidate_labels": ["a cat", "a dog"]}'}

MEDIA_TASKS = (
    MediaTask(
        "audio-classification",
        "Label a sound",
        requests.AudioClassificationInputs,
        answers.PipelineLabels,
        media_answers.labels,
        {"model": "ast", **_SOUND, "parameters": '{"top_k": 3}'},
    ),
    MediaTask(
        "zero-shot-audio-classification",
        "Label a sound with labels of your own",
        requests.ZeroShotAudioInputs,
        answers.PipelineLabels,
        media_answers.labels,
        {"model": "clap", **_SOUND, **_LABELS},
    ),
    MediaTask(
        "automatic-speech-recognition",
        "Write down what is said",
        requests.RecognitionInputs,
        media_answers.PipelineTranscripts,
        media_answers.transcript,
        {"model": "whisper", **_SOUND, "parameters": '{"return_timestamps": true}'},
    ),
    MediaTask(
        "text-to-speech",
        "Say a text, whole",
        requests.SpeakingInputs,
        media_answers.PipelineSpeeches,
        media_answers.speech,
        {"model": "joe", "inputs": "Hello from the mesh."},
    ),
    MediaTask(
        "image-classification",
        "Label a picture",
        requests.ImageClassificationInputs,
        answers.PipelineLabels,
        media_answers.labels,
        {"model": "clip", **_PICTURE},
    ),
    MediaTask(
        "zero-shot-image-classification",
        "Label a picture with labels of your own",
        requests.ZeroShotImageInputs,
        answers.PipelineLabels,
        media_answers.labels,
        {"model": "clip", **_PICTURE, **_LABELS},
    ),
    MediaTask(
        "object-detection",
        "Find what a model knows",
        requests.ObjectDetectionInputs,
        media_answers.PipelineObjects,
        media_answers.objects,
        {"model": "owlv2", **_PICTURE},
    ),
    MediaTask(
        "zero-shot-object-detection",
        "Find what you name",
        requests.ZeroShotDetectionInputs,
        media_answers.PipelineObjects,
        media_answers.objects,
        {"model": "owlv2", **_PICTURE, **_LABELS},
    ),
    MediaTask(
        "depth-estimation",
        "Tell how far away things are",
        requests.DepthEstimationInputs,
        media_answers.PipelineDepths,
        media_answers.depth,
        {"model": "depth-anything", **_PICTURE},
    ),
    MediaTask(
        "image-segmentation",
        "Cut a picture into its parts",
        requests.ImageSegmentationInputs,
        media_answers.PipelineSegments,
        media_answers.segments,
        {"model": "segformer", **_PICTURE},
    ),
    MediaTask(
        "image-to-text",
        "Say what a picture shows",
        requests.ImageToTextInputs,
        answers.PipelineTexts,
        media_answers.caption,
        {"model": "toy-caption", **_PICTURE},
    ),
    MediaTask(
        "image-feature-extraction",
        "Show the hidden states of a picture",
        requests.ImageFeatureInputs,
        answers.PipelineFeatures,
        media_answers.vectors,
        {"model": "dinov2", **_PICTURE},
    ),
)

#: What the fields of the tasks' inputs are called in requests.
FIELDS = {
    "file": "inputs",
    "image": "inputs",
    "text": "inputs",
    "labels": "parameters.candidate_labels",
    "template": "parameters.hypothesis_template",
    "top": "parameters.top_k",
    "mode": "parameters.subtask",
    "max_tokens": "parameters.max_new_tokens",
    **{
        name: f"parameters.{name}"
        for name in ("language", "pool", "prompt", "speed", "threshold", "voice")
    },
}


def handler_of(task: MediaTask) -> OperationHandler:
    """Return what runs a task, with the words of its request as its description."""

    async def run(exchange: Exchange, body: Any) -> web.StreamResponse:
        exchange.start(body.does, body.model, [body.task()])
        (result,) = await shares.results(exchange, FIELDS)
        try:
            found = task.read(body, result)
        except (ValueError, TypeError) as error:
            raise RuntimeFailed(f"The node's answer cannot be read: {error}") from None
        answer = task.answer(
            task=task.name,
            model=body.model,
            results=[found],
            usage=answers.usage_of([result.answer.usage]),
        )
        return web.Response(text=answer.model_dump_json(), content_type="application/json")

    run.__doc__ = (
        f"{task.summary}: {task.body.__doc__}\n\nOne result, in a list as of every pipeline: "
        f"{task.answer.__doc__}"
    )
    return run
