"""What the pipelines answer: a result for each input, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from blip.kinds.vision import features_of


class PipelineUsage(BaseModel):
    """Tokens that were read and written, and how many inputs lost their end."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    truncated: int


def usage_of(counts: Sequence[Mapping[str, int]]) -> PipelineUsage:
    """Sum up what the nodes counted."""
    read, written, lost = (
        sum(each.get(name, 0) for each in counts)
        for name in ("prompt_tokens", "completion_tokens", "truncated")
    )
    return PipelineUsage(
        prompt_tokens=read, completion_tokens=written, total_tokens=read + written, truncated=lost
    )


class PipelineAnswer(BaseModel):
    """What stands around every list of results."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["list"] = "list"
    task: str
    model: str
    results: list[Any]
    """A result for each of the inputs, in their order; a list of one for a single input."""
    usage: PipelineUsage


class PipelineLabel(BaseModel):
    """A label and its probability."""

    label: str
    score: float


class PipelineLabels(PipelineAnswer):
    """The labels of each input, best first."""

    results: list[list[PipelineLabel]]

    @staticmethod
    def result(found: Any) -> list[PipelineLabel]:
        """Read what a node found in one text."""
        return [PipelineLabel(label=label, score=score) for label, score in found]


class PipelineEntity(BaseModel):
    """A part of a text and what it is; start and end are its characters."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


class PipelineEntities(PipelineAnswer):
    """The entities of each text, in its order."""

    results: list[list[PipelineEntity]]

    @staticmethod
    def result(found: Any) -> list[PipelineEntity]:
        """Read what a node found in one text."""
        names = ("entity_group", "score", "word", "start", "end")
        return [PipelineEntity(**dict(zip(names, each, strict=True))) for each in found]


class PipelineFill(BaseModel):
    """A token that may stand where a mask is, and the text with it in place."""

    score: float
    token: int
    token_str: str
    sequence: str


class PipelineFills(PipelineAnswer):
    """What each mask of each text may stand for, likeliest first."""

    results: list[list[list[PipelineFill]]]

    @staticmethod
    def result(found: Any) -> list[list[PipelineFill]]:
        """Read what a node found for one text."""
        return [
            [
                PipelineFill(token=token, token_str=word, score=score, sequence=text)
                for token, word, score, text in mask
            ]
            for mask in found
        ]


class PipelineSpan(BaseModel):
    """An answer; start and end are its characters in the context."""

    answer: str
    score: float
    start: int
    end: int


class PipelineSpans(PipelineAnswer):
    """The answers to each question, likeliest first."""

    results: list[list[PipelineSpan]]

    @staticmethod
    def result(found: Any) -> list[PipelineSpan]:
        """Read what a node found for one question."""
        names = ("answer", "score", "start", "end")
        return [PipelineSpan(**dict(zip(names, each, strict=True))) for each in found]


class PipelineFeatures(PipelineAnswer):
    """A vector for each token of each text, or patch of a picture, the model's markers included."""

    results: list[list[list[float]]]

    @staticmethod
    def result(found: Any) -> list[list[float]]:
        """Read the rows of one text."""
        return features_of(found).vectors


class PipelineText(BaseModel):
    """A text that was written."""

    generated_text: str


class PipelineTexts(PipelineAnswer):
    """What was written of each text."""

    results: list[PipelineText]

    @staticmethod
    def result(found: Any) -> PipelineText:
        """Read what a node wrote of one text."""
        return PipelineText(generated_text=found)


class PipelineSummary(BaseModel):
    """A summary."""

    summary_text: str


class PipelineSummaries(PipelineAnswer):
    """A summary of each text."""

    results: list[PipelineSummary]

    @staticmethod
    def result(found: Any) -> PipelineSummary:
        """Read what a node wrote of one text."""
        return PipelineSummary(summary_text=found)


class PipelineTranslation(BaseModel):
    """A translation."""

    translation_text: str


class PipelineTranslations(PipelineAnswer):
    """A translation of each text."""

    results: list[PipelineTranslation]

    @staticmethod
    def result(found: Any) -> PipelineTranslation:
        """Read what a node wrote of one text."""
        return PipelineTranslation(translation_text=found)
