"""The tasks of transformers' pipelines on text, a kind each, under transformers' own names.

Every input has texts, every answer a result for each of them, in their order: a msgpack list that
:func:`results_to_wire` writes. What a result is stands with the kind.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgpack
from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.text import CHARS_PER_TOKEN

#: Texts a request.
MAX_TEXTS = 1024

#: Candidates of a zero-shot classification: each one is a pass of its own with the whole text.
MAX_CANDIDATES = 128

#: Most results that can be asked for of each text.
MAX_RESULTS = 1000

#: Output tokens that are assumed of a text where the request sets no limit.
TYPICAL_OUTPUT_TOKENS = 64

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Candidates = Annotated[list[Text], Field(min_length=1, max_length=MAX_CANDIDATES)]
TopK = Annotated[int, Field(ge=1, le=MAX_RESULTS)]

#: How neighbouring tokens become one entity; transformers explains the five.
Aggregation = Literal["none", "simple", "first", "average", "max"]

#: How scores are made of logits; None leaves it to the model's configuration.
Activation = Literal["sigmoid", "softmax", "none"]

#: What a sequence-to-sequence model is asked for; it chooses the model's own prefix and limits.
TextTask = Literal["text2text-generation", "summarization", "translation"]


class TextsInput(TaskInput):
    """Texts, and whether those that are too long for the model are cut rather than refused.

    Where a request was cut into several tasks ``first`` is the number of this one's first text,
    for its errors.
    """

    texts: Texts
    truncate: bool = False
    first: Annotated[int, Field(ge=0)] = 0


class TextClassificationInput(TextsInput):
    """Texts to label. A result is ``[[label, score], ...]``, best first."""

    top_k: TopK | None = None
    activation: Activation | None = None


class ZeroShotInput(TextsInput):
    """Texts and labels of one's own. A result is ``[[label, score], ...]``, best first.

    ``template`` makes a sentence of a label, which stands in it as ``{}``. With ``multi_label``
    each label has a probability of its own, else they share one.
    """

    candidates: Candidates
    multi_label: bool = False
    template: Annotated[str, Field(min_length=2, max_length=1000)] = "This example is {}."


class TokenClassificationInput(TextsInput):
    """Texts to find entities in. A result is ``[[label, score, word, start, end], ...]``.

    ``start`` and ``end`` are characters of the text.
    """

    aggregation: Aggregation = "simple"
    ignore_labels: Annotated[list[str], Field(max_length=100)] = Field(
        default_factory=lambda: ["O"]
    )


class FillMaskInput(TextsInput):
    """Texts with masks. A result is ``[[[id, token, score, text], ...], ...]``: a list a mask.

    With ``targets`` only these tokens are scored.
    """

    top_k: TopK = 5
    targets: Candidates | None = None


class FeatureExtractionInput(TextsInput):
    """Texts. A result is ``[tokens, bytes]``: rows of little-endian float32, one a token."""


class QuestionAnsweringInput(TaskInput):
    """Questions, and the texts where their answers stand.

    A result is ``[[answer, score, start, end], ...]``, best first; ``start`` and ``end`` are
    characters of the context. A context that is too long is read in windows that share ``stride``
    tokens. With ``impossible`` an empty answer may be the best.
    """

    questions: Texts
    contexts: Texts
    top_k: TopK = 1
    max_answer_tokens: Annotated[int, Field(ge=1, le=512)] = 15
    stride: Annotated[int, Field(ge=0)] = 128
    impossible: bool = False
    first: Annotated[int, Field(ge=0)] = 0


class Text2TextInput(TextsInput):
    """Texts to write something of, without chance. A result is a text.

    ``source`` and ``target`` are languages, in the words of the model.
    """

    task: TextTask = "text2text-generation"
    source: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    target: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=4096)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=16)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None


def tokens_of(texts: list[str]) -> float:
    """Return about how many tokens texts have, and one for each."""
    return len(texts) + sum(map(len, texts)) / CHARS_PER_TOKEN


def _text_units(value: TextsInput) -> float:
    return tokens_of(value.texts)


def _zero_shot_units(value: ZeroShotInput) -> float:
    return tokens_of(value.texts) * len(value.candidates)


def _question_units(value: QuestionAnsweringInput) -> float:
    return tokens_of(value.questions) + tokens_of(value.contexts)


def _written_units(value: Text2TextInput) -> float:
    """Output tokens: reading the text is one pass, each token that is written is another."""
    each = min(value.max_new_tokens or TYPICAL_OUTPUT_TOKENS, 4 * TYPICAL_OUTPUT_TOKENS)
    return float(len(value.texts) * each * (value.num_beams or 1))


TEXT_CLASSIFICATION = Kind("text-classification", TextClassificationInput, _text_units)
ZERO_SHOT = Kind("zero-shot-classification", ZeroShotInput, _zero_shot_units)
TOKEN_CLASSIFICATION = Kind("token-classification", TokenClassificationInput, _text_units)
FILL_MASK = Kind("fill-mask", FillMaskInput, _text_units)
FEATURE_EXTRACTION = Kind("feature-extraction", FeatureExtractionInput, _text_units)
QUESTION_ANSWERING = Kind("question-answering", QuestionAnsweringInput, _question_units)
TEXT2TEXT = Kind("text2text-generation", Text2TextInput, _written_units)

#: Every kind of this module.
PIPELINES = (
    TEXT_CLASSIFICATION,
    ZERO_SHOT,
    TOKEN_CLASSIFICATION,
    FILL_MASK,
    FEATURE_EXTRACTION,
    QUESTION_ANSWERING,
    TEXT2TEXT,
)


def results_to_wire(results: list[Any]) -> bytes:
    """Encode the results of a task, one for each of its texts: its DONE payload."""
    packed: bytes = msgpack.packb(results)
    return packed


def results_from_wire(payload: bytes | memoryview, count: int) -> list[Any]:
    """Decode a DONE payload of ``count`` results. Raises ``ValueError`` on anything else."""
    results = msgpack.unpackb(payload)
    if not isinstance(results, list) or len(results) != count:
        raise ValueError(f"{count} results were expected")
    return results
