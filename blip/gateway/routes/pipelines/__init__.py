"""``POST /v1/pipelines/{task}``: transformers' tasks on texts and files, an operation each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from blip.errors import NotFound, RuntimeFailed
from blip.gateway import shares
from blip.gateway.api import Operation, OperationHandler
from blip.gateway.exchange import Exchange
from blip.gateway.routes import about
from blip.gateway.routes.failures import TEXT_FAILURES
from blip.gateway.routes.pipelines import answers, media, requests
from blip.gateway.routes.pipelines.media import MEDIA_TASKS, MediaTask
from blip.kinds.pipelines import results_from_wire

ROOT = "/v1/pipelines"


class Task(NamedTuple):
    """One task: its words, what is asked and answered, and a request to try."""

    name: str
    summary: str
    body: Any
    answer: Any
    example: Mapping[str, Any]


TASKS = (
    Task(
        "text-classification",
        "Label texts",
        requests.TextClassificationRequest,
        answers.PipelineLabels,
        {"model": "sentiment", "inputs": ["I like it", "I do not"]},
    ),
    Task(
        "zero-shot-classification",
        "Label texts with labels of your own",
        requests.ZeroShotRequest,
        answers.PipelineLabels,
        {
            "model": "nli",
            "inputs": "The goal came late",
            "parameters": {"candidate_labels": ["sport", "food"]},
        },
    ),
    Task(
        "token-classification",
        "Find names in texts",
        requests.TokenClassificationRequest,
        answers.PipelineEntities,
        {"model": "ner", "inputs": "Ada lived in London"},
    ),
    Task(
        "fill-mask",
        "Fill gaps in texts",
        requests.FillMaskRequest,
        answers.PipelineFills,
        {"model": "bert", "inputs": "Paris is the [MASK] of France."},
    ),
    Task(
        "question-answering",
        "Find answers in texts",
        requests.QuestionAnsweringRequest,
        answers.PipelineSpans,
        {
            "model": "squad",
            "inputs": {"question": "Where did Ada live?", "context": "Ada lived in London."},
        },
    ),
    Task(
        "summarization",
        "Shorten texts",
        requests.SummarizationRequest,
        answers.PipelineSummaries,
        {"model": "bart", "inputs": "A long story.", "parameters": {"max_new_tokens": 40}},
    ),
    Task(
        "translation",
        "Translate texts",
        requests.TextTranslationRequest,
        answers.PipelineTranslations,
        {
            "model": "nllb",
            "inputs": "Good morning",
            "parameters": {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"},
        },
    ),
    Task(
        "text2text-generation",
        "Write a text of a text",
        requests.WritingRequest,
        answers.PipelineTexts,
        {"model": "flan-t5", "inputs": "Is this true? Snow is black."},
    ),
    Task(
        "feature-extraction",
        "Show the hidden states of texts",
        requests.FeatureExtractionRequest,
        answers.PipelineFeatures,
        {"model": "bert", "inputs": "a river"},
    ),
)

#: transformers' other names of the same.
ALIASES = {
    "ner": "token-classification",
    "sentiment-analysis": "text-classification",
    "text-to-audio": "text-to-speech",
}

#: Where else it is done, by transformers' names.
ELSEWHERE = {
    "image-text-to-text": "POST /v1/chat/completions",
    "image-to-image": "POST /v1/images/upscale",
    "sentence-similarity": "POST /v1/rerank",
    "text-generation": "POST /v1/completions",
    "text-to-image": "POST /v1/images/generations",
    "visual-question-answering": "POST /v1/chat/completions, with a picture in a message",
}

#: What is not done, and why.
ABSENT = {
    "document-question-answering": "transformers' needs an OCR engine beside the model; ask a chat "
    "model that sees: POST /v1/chat/completions with the page as a picture",
    "mask-generation": "its masks have no names; POST /v1/pipelines/image-segmentation has",
    "table-question-answering": "transformers' needs pandas; ask a chat model, the table as text",
    "video-classification": "no library that blip builds on decodes videos for it",
}


#: What the fields of the tasks' inputs are called in requests.
FIELDS = {
    "texts": "inputs",
    "questions": "inputs",
    "contexts": "inputs",
    "template": "parameters.hypothesis_template",
    "source": "parameters.src_lang",
    "target": "parameters.tgt_lang",
    "targets": "parameters.targets",
    "min_new_tokens": "parameters.min_new_tokens",
}


class PipelineEntry(BaseModel):
    """A task, and the models of this mesh that can do it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    task: str
    path: str
    description: str
    kind: str
    """What GET /v1/models calls it."""
    models: list[str]
    """Those of the kind; of a zero-shot task some may have classes of their own instead."""


class PipelineList(BaseModel):
    """Every task that blip knows."""

    object: Literal["list"] = "list"
    data: list[PipelineEntry]


async def index(exchange: Exchange) -> web.StreamResponse:
    """List the tasks, and which models of the mesh can do each."""
    served = exchange.gateway.mesh.models()
    view = PipelineList(
        data=[
            PipelineEntry(
                task=task.name,
                path=f"{ROOT}/{task.name}",
                description=task.summary,
                kind=task.body.kind.name,
                models=[model.name for model in served if task.body.kind.name in model.kinds],
            )
            for task in (*TASKS, *MEDIA_TASKS)
        ]
    )
    return web.Response(text=view.model_dump_json(), content_type="application/json")


async def unknown(exchange: Exchange) -> web.StreamResponse:
    """Answer for a task that blip does not know, with those that it does."""
    given = exchange.request.match_info["task"]
    names = [task.name for task in (*TASKS, *MEDIA_TASKS)]
    if given in names:  # it was the method that is wrong
        return await about.unknown(exchange)
    hint = f"Known are {', '.join(names)}."
    if given in ELSEWHERE:
        hint = f"It is {ELSEWHERE[given]}."
    elif given in ALIASES:
        hint = f"It is called {ALIASES[given]} here."
    elif given in ABSENT:
        hint = f"It is not done here: {ABSENT[given]}."
    elif near := difflib.get_close_matches(given, names, n=1):
        hint = f"Did you mean '{near[0]}'? {hint}"
    raise NotFound(f"There is no pipeline '{given}'.", hint=hint, param="task")


def handler_of(task: Task) -> OperationHandler:
    """Return what runs a task, with the words of its request as its description."""

    async def run(exchange: Exchange, body: Any) -> web.StreamResponse:
        parts = shares.start(exchange, body.kind, body.model, body.costs(), body.task)
        results: list[Any] = []
        counts: list[Mapping[str, int]] = []
        try:
            for part, (_, answer) in zip(
                parts, await shares.results(exchange, FIELDS), strict=True
            ):
                found = results_from_wire(answer.payload, len(part))
                results += map(task.answer.result, found)
                counts.append(answer.usage)
        except (ValueError, TypeError) as error:
            raise RuntimeFailed(f"The node's answer cannot be read: {error}") from None
        answer = task.answer(
            task=task.name,
            model=body.model,
            results=results,
            usage=answers.usage_of(counts),
        )
        return web.Response(text=answer.model_dump_json(), content_type="application/json")

    run.__doc__ = (
        f"{task.summary}: {task.body.__doc__}\n\nA result for each input, in their order: "
        f"{task.answer.__doc__} Long lists are shared by several devices."
    )
    return run


def _operation(task: Task | MediaTask) -> Operation:
    return Operation(
        "POST",
        f"{ROOT}/{task.name}",
        handler_of(task) if isinstance(task, Task) else media.handler_of(task),
        task.summary,
        "pipelines",
        body=task.body,
        answer=task.answer,
        errors=TEXT_FAILURES,
        task=True,
        example=task.example,
    )


OPERATIONS = (
    Operation("GET", ROOT, index, "List the pipelines", "pipelines", answer=PipelineList),
    *map(_operation, TASKS),
    *map(_operation, MEDIA_TASKS),
)

#: Not in the document of the API: it is what is not there.
UNKNOWN = Operation(
    "*", f"{ROOT}/{{task}}", unknown, "Any other task", "pipelines", errors=(NotFound,)
)
