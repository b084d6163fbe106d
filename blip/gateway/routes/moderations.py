"""``POST /v1/moderations``: verdicts on texts and pictures, OpenAI's way."""

from __future__ import annotations

from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from blip.errors import ModelNotFound, UnsupportedField
from blip.gateway.api import Operation
from blip.gateway.exchange import Exchange
from blip.gateway.fields import Request
from blip.gateway.guard import moderate
from blip.gateway.routes.failures import TASK_FAILURES
from blip.gateway.upload import decode_picture
from blip.kinds.moderation import CATEGORIES, MAX_LETTERS, Verdict

Text = Annotated[str, Field(max_length=MAX_LETTERS)]

#: What OpenAI's models are called: who names one means whatever there is.
_OPENAI = ("omni-moderation", "text-moderation")


class ImageUrl(Request):
    """A picture's data."""

    url: str
    """``data:image/png;base64,...``: nothing is fetched from elsewhere."""


class TextPart(Request):
    """A text."""

    type: Literal["text"]
    text: Text


class ImagePart(Request):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ModerationRequest(Request):
    """Something to judge."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Part], Field(min_length=1, max_length=256)]
    )
    """A text; texts, each with a result of its own; or parts, texts and pictures, which get one."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A name from GET /v1/models, for the texts; the gateway's own choice by default, or under one
    of OpenAI's names."""


class ModerationResult(BaseModel):
    """A verdict. All of OpenAI's categories are there, and what else the model judges.

    ``category_applied_input_types`` is empty for a category that no model judged: its false and 0
    say nothing.
    """

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class Moderation(BaseModel):
    """All verdicts of a request, in its order."""

    id: str
    model: str
    results: list[ModerationResult]


async def create(exchange: Exchange, body: ModerationRequest) -> web.StreamResponse:
    """Say which categories of harm texts or pictures fall into.

    What cannot be judged is an error, never unflagged: no model, one that is gone, or one that
    answers nonsense.
    """
    settings = exchange.gateway.settings
    parts = _parts(body)
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if isinstance(part, bytes)]
    model = body.model or ""
    if not model or model.startswith(_OPENAI):
        model = settings.moderation_model or model
    verdicts: list[Verdict] = []
    if texts:
        if not model:
            raise ModelNotFound(
                "'model' is missing, and this gateway has no moderation model of its own.",
                hint="Name one, or set gateway.moderation_model.",
                param="model",
            )
        exchange.permit("moderation", model)
        verdicts += await moderate(exchange, model, texts=texts)
    if pictures:
        judge = settings.moderation_image_model
        if not judge:
            raise UnsupportedField(
                "'input' has pictures, and this gateway has no model that judges them.",
                hint="Leave them out, or set gateway.moderation_image_model.",
                param="input",
            )
        exchange.permit("moderation", judge)
        verdicts += await moderate(exchange, judge, images=pictures)
    kinds = ["text"] * len(texts) + ["image"] * len(pictures)
    judged = list(zip(kinds, verdicts, strict=True))
    one = isinstance(body.input, list) and not isinstance(body.input[0], str)
    results = [_result(judged)] if one else [_result([each]) for each in judged]
    names = [model] * bool(texts) + [settings.moderation_image_model] * bool(pictures)
    answer = Moderation(id=f"modr-{exchange.request_id}", model=", ".join(names), results=results)
    return web.Response(text=answer.model_dump_json(), content_type="application/json")


def _parts(body: ModerationRequest) -> list[str | bytes]:
    """Return what is to be judged, in order: texts, and the files of pictures."""
    if isinstance(body.input, str):
        return [body.input]
    found: list[str | bytes] = []
    for number, part in enumerate(body.input):
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, TextPart):
            found.append(part.text)
        else:
            found.append(decode_picture(part.image_url.url, f"input.{number}.image_url.url"))
    return found


def _result(judged: list[tuple[str, Verdict]]) -> ModerationResult:
    """Put verdicts on parts of one thing together: the worst of each category counts."""
    scores: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    flags: dict[str, bool] = dict.fromkeys(CATEGORIES, False)
    applied: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    for kind, verdict in judged:
        for name, score in verdict.scores.items():
            scores[name] = max(score, scores.get(name, 0.0))
            flags[name] = flags.get(name, False) or name in verdict.flagged
            if kind not in applied.setdefault(name, []):
                applied[name].append(kind)
    return ModerationResult(
        flagged=any(flags.values()),
        categories=flags,
        category_scores=scores,
        category_applied_input_types=applied,
    )


OPERATIONS = (
    Operation(
        "POST",
        "/v1/moderations",
        create,
        "Judge texts and pictures",
        "safety",
        body=ModerationRequest,
        answer=Moderation,
        errors=TASK_FAILURES,
        task=True,
        example={"model": "guard", "input": "a kind word"},
    ),
)
