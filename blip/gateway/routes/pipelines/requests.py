"""What is asked of the pipelines: ``inputs`` and ``parameters``, as Hugging Face names them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Request
from blip.gateway.sampling import ModelName
from blip.kinds import Kind, TaskInput
from blip.kinds.pipelines import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    MAX_CANDIDATES,
    MAX_TEXTS,
    QUESTION_ANSWERING,
    TEXT2TEXT,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    ZERO_SHOT,
    Activation,
    Aggregation,
    FeatureExtractionInput,
    FillMaskInput,
    QuestionAnsweringInput,
    Text,
    Text2TextInput,
    TextClassificationInput,
    TextTask,
    TokenClassificationInput,
    TopK,
    ZeroShotInput,
)
from blip.kinds.text import CHARS_PER_TOKEN

#: Most pairs of a text and a candidate in one zero-shot request: each is a pass of its own.
MAX_PAIRS = 16_384

Inputs = Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Labels = Annotated[list[Text], Field(min_length=1, max_length=MAX_CANDIDATES)]


class Parameters(Request):
    """What all tasks know."""

    truncate: bool = False
    """Whether a text that is too long loses its end; otherwise it is an error. Ours."""


class TextsRequest(Request):
    """A model and texts for it."""

    kind: ClassVar[Kind]

    model: ModelName
    """A name from GET /v1/models; GET /v1/pipelines lists those of each task."""
    inputs: Inputs
    """One text, or a list of them."""

    @property
    def texts(self) -> list[str]:
        """The texts, one or several."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    def costs(self) -> list[float]:
        """Return what each input costs, in texts and tokens."""
        return [1 + len(text) / CHARS_PER_TOKEN for text in self.texts]

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        raise NotImplementedError


class TextClassificationParameters(Parameters):
    """How texts are labelled."""

    top_k: TopK | None = None
    """How many of the best labels are returned; all by default."""
    function_to_apply: Activation | None = None
    """How scores are made of logits; what the model's configuration says by default."""


class TextClassificationRequest(TextsRequest):
    """Texts to label: sentiment, topic, language, toxicity, ..."""

    kind = TEXT_CLASSIFICATION

    parameters: TextClassificationParameters = Field(default_factory=TextClassificationParameters)

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        said = self.parameters
        return TextClassificationInput(
            texts=self.texts[part.start : part.stop],
            first=part.start,
            truncate=said.truncate,
            top_k=said.top_k,
            activation=said.function_to_apply,
        )


class ZeroShotParameters(Parameters):
    """The labels, and how they are asked about."""

    candidate_labels: Labels
    """Labels of your own."""
    multi_label: bool = False
    """Whether several may be true: each then has a probability of its own."""
    hypothesis_template: Annotated[str, Field(min_length=2, max_length=1000)] = (
        "This example is {}."
    )
    """A sentence, with {} where a label is to stand."""


class ZeroShotRequest(TextsRequest):
    """Texts, and labels that no model was trained on."""

    kind = ZERO_SHOT

    parameters: ZeroShotParameters

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what would be endless, or senseless."""
        super().check(at)
        said = self.parameters
        if "{}" not in said.hypothesis_template:
            raise InvalidRequest(
                "'parameters.hypothesis_template' has no {} for the label.",
                hint='For instance "This text is about {}."',
                param="parameters.hypothesis_template",
            )
        pairs = len(self.texts) * len(said.candidate_labels)
        if pairs > MAX_PAIRS:
            raise InvalidRequest(
                f"{len(self.texts)} texts with {len(said.candidate_labels)} labels each are "
                f"{pairs} passes; {MAX_PAIRS} are the most.",
                hint="Send fewer texts at once.",
                param="inputs",
            )

    def costs(self) -> list[float]:
        """Return what each input costs: a pass for every label."""
        return [cost * len(self.parameters.candidate_labels) for cost in super().costs()]

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        said = self.parameters
        return ZeroShotInput(
            texts=self.texts[part.start : part.stop],
            first=part.start,
            truncate=said.truncate,
            candidates=said.candidate_labels,
            multi_label=said.multi_label,
            template=said.hypothesis_template,
        )


class TokenClassificationParameters(Parameters):
    """How entities are made of tokens."""

    aggregation_strategy: Aggregation = "simple"
    """How tokens become entities: none, simple, first, average or max."""
    ignore_labels: Annotated[list[str], Field(max_length=100)] | None = None
    """Labels that are left out; "O" by default."""


class TokenClassificationRequest(TextsRequest):
    """Texts to find names, places or parts of speech in."""

    kind = TOKEN_CLASSIFICATION

    parameters: TokenClassificationParameters = Field(default_factory=TokenClassificationParameters)

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        said = self.parameters
        return TokenClassificationInput(
            texts=self.texts[part.start : part.stop],
            first=part.start,
            truncate=said.truncate,
            aggregation=said.aggregation_strategy,
            ignore_labels=["O"] if said.ignore_labels is None else said.ignore_labels,
        )


class FillMaskParameters(Parameters):
    """What may stand where the mask is."""

    top_k: TopK = 5
    """How many of the best are returned."""
    targets: Labels | None = None
    """Score these words only; each must be one token of the model's."""


class FillMaskRequest(TextsRequest):
    """Texts with [MASK] (or <mask>) in them."""

    kind = FILL_MASK

    parameters: FillMaskParameters = Field(default_factory=FillMaskParameters)

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        said = self.parameters
        return FillMaskInput(
            texts=self.texts[part.start : part.stop],
            first=part.start,
            truncate=said.truncate,
            top_k=said.top_k,
            targets=said.targets,
        )


class FeatureExtractionRequest(TextsRequest):
    """Texts to see each token's last hidden state of."""

    kind = FEATURE_EXTRACTION

    parameters: Parameters = Field(default_factory=Parameters)

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        return FeatureExtractionInput(
            texts=self.texts[part.start : part.stop],
            first=part.start,
            truncate=self.parameters.truncate,
        )


class QuestionInContext(Request):
    """A question, and the text where its answer stands."""

    question: Text
    context: Text


class QuestionAnsweringParameters(Request):
    """What counts as an answer."""

    top_k: TopK = 1
    """How many of the best are returned."""
    max_answer_len: Annotated[int, Field(ge=1, le=512)] = 15
    """Most tokens of an answer."""
    doc_stride: Annotated[int, Field(ge=0, lt=2**31)] = 128
    """Tokens that two windows of a long context share."""
    handle_impossible_answer: bool = False
    """Whether the best answer may be none: an empty one."""


class QuestionAnsweringRequest(Request):
    """Questions, each with a text where its answer stands."""

    kind: ClassVar[Kind] = QUESTION_ANSWERING

    model: ModelName
    """A name from GET /v1/models; GET /v1/pipelines lists those of each task."""
    inputs: (
        QuestionInContext
        | Annotated[list[QuestionInContext], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    """One question with its context, or a list of them."""
    parameters: QuestionAnsweringParameters = Field(default_factory=QuestionAnsweringParameters)

    @property
    def asked(self) -> list[QuestionInContext]:
        """The questions, one or several."""
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]

    def costs(self) -> list[float]:
        """Return what each question costs, in texts and tokens."""
        return [2 + (len(q.question) + len(q.context)) / CHARS_PER_TOKEN for q in self.asked]

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the questions."""
        said = self.parameters
        some = self.asked[part.start : part.stop]
        return QuestionAnsweringInput(
            questions=[each.question for each in some],
            contexts=[each.context for each in some],
            first=part.start,
            top_k=said.top_k,
            max_answer_tokens=said.max_answer_len,
            stride=said.doc_stride,
            impossible=said.handle_impossible_answer,
        )


class WritingParameters(Parameters):
    """How a text is written; without chance, so the same text gives the same."""

    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most tokens that are written of a text; what the model's files say, or 256."""
    min_new_tokens: Annotated[int, Field(ge=0, le=4096)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=16)] | None = None
    """Texts that are tried side by side; what the model's files say, or 1."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    """With several beams: above 0 favours longer texts, below 0 shorter ones."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    """So many tokens in a row are not written twice."""


class TranslationParameters(WritingParameters):
    """The languages too, where a model knows several."""

    src_lang: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The language of the texts, in the model's own words: eng_Latn, en_XX, en, ..."""
    tgt_lang: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The language to translate to."""


class WritingRequest(TextsRequest):
    """Texts to write something of."""

    kind = TEXT2TEXT
    written: ClassVar[TextTask] = "text2text-generation"

    parameters: WritingParameters = Field(default_factory=WritingParameters)

    def costs(self) -> list[float]:
        """Return what each text costs: what is written of it takes far longer than reading it."""
        each = (self.parameters.max_new_tokens or 64) * (self.parameters.num_beams or 1)
        return [cost + 16.0 * each for cost in super().costs()]

    def task(self, part: range) -> TaskInput:
        """Return the input of the task for a part of the texts."""
        said = self.parameters.model_dump()
        said["source"], said["target"] = said.pop("src_lang", None), said.pop("tgt_lang", None)
        texts = self.texts[part.start : part.stop]
        return Text2TextInput(texts=texts, first=part.start, task=self.written, **said)


class SummarizationRequest(WritingRequest):
    """Texts to shorten."""

    written = "summarization"


class TextTranslationRequest(WritingRequest):
    """Texts to translate."""

    written = "translation"

    parameters: TranslationParameters = Field(default_factory=TranslationParameters)
