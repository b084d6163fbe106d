"""What is asked of the pipelines that look and listen: a file and ``parameters``."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Request
from blip.gateway.form import File, FormRequest
from blip.gateway.routes.vision import Labels, split
from blip.gateway.sampling import ModelName, Seed, wishes
from blip.gateway.speaking import Speed, Text, VoiceName, task_of
from blip.kinds import Kind, TaskInput
from blip.kinds.caption import CAPTION, CaptionInput
from blip.kinds.pictures import check_picture
from blip.kinds.pipelines import Activation, TopK
from blip.kinds.sound_classification import (
    AUDIO_CLASSIFICATION,
    ZERO_SHOT_AUDIO,
    AudioClassificationInput,
    ZeroShotAudioInput,
)
from blip.kinds.sounds import check_sound
from blip.kinds.speech import SPEECH
from blip.kinds.transcription import TRANSCRIPTION, TRANSLATION, TranscriptionInput
from blip.kinds.vision import (
    DEPTH,
    DETECTION,
    IMAGE_CLASSIFICATION,
    IMAGE_FEATURES,
    SEGMENTATION,
    ClassificationInput,
    DepthInput,
    DetectionInput,
    ImageFeaturesInput,
    SegmentationInput,
    SegmentMode,
)

Threshold = Annotated[float, Field(ge=0, le=1)]
Template = Annotated[str, Field(min_length=2, max_length=256)]

_PARAMETERS = "How it is done. In a form, an object as JSON text."


class MediaRequest(FormRequest):
    """A model and a file for it: a form, or JSON with base64. One file a request."""

    kind: ClassVar[Kind]
    json_too: ClassVar[bool] = True
    objects: ClassVar[frozenset[str]] = frozenset({"parameters"})

    model: ModelName
    """A name from GET /v1/models; GET /v1/pipelines lists those of each task."""

    @property
    def does(self) -> Kind:
        """The kind of its task."""
        return self.kind

    @property
    def file(self) -> bytes:
        """The file."""
        return self.upload("inputs") or b""

    def task(self) -> TaskInput:
        """Return the input of the task."""
        raise NotImplementedError


class PictureInputs(MediaRequest):
    """A picture."""

    files: ClassVar[Mapping[str, File]] = {
        "inputs": File(
            "The picture: PNG, JPEG or WebP. In JSON as base64, bare or as a data: URL.",
            required=True,
        )
    }

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for a picture that cannot be."""
        super().check(at)
        if self.upload("inputs") is not None:
            check_picture(self.file, "inputs")


class SoundInputs(MediaRequest):
    """A sound."""

    files: ClassVar[Mapping[str, File]] = {
        "inputs": File(
            "The sound: WAV, MP3, FLAC or Ogg (Vorbis, Opus), two hours at most. In JSON as "
            "base64, bare or as a data: URL.",
            required=True,
        )
    }

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for a sound that cannot be."""
        super().check(at)
        if self.upload("inputs") is not None:
            check_sound(self.file, "inputs")


class NoParameters(Request):
    """Nothing to say."""


class ImageClassificationParameters(Request):
    """How many labels."""

    top_k: TopK = 5
    """How many of the best labels are returned."""


class ImageClassificationInputs(PictureInputs):
    """A picture to name by the model's own classes."""

    kind = IMAGE_CLASSIFICATION

    parameters: Annotated[ImageClassificationParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=ImageClassificationParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        return ClassificationInput(image=self.file, top=self.parameters.top_k)


class CandidateParameters(Request):
    """Labels of your own."""

    candidate_labels: Labels
    """Labels of your own: a list, or one text with commas."""

    @property
    def labels(self) -> list[str]:
        """The labels. Raises :class:`~blip.errors.InvalidRequest` where there is none."""
        where = "parameters.candidate_labels"
        found = split(self.candidate_labels, where)
        if not found:
            raise InvalidRequest(f"'{where}' has no label.", param=where)
        return found


def _check_template(template: str) -> None:
    if "{}" not in template:
        where = "parameters.hypothesis_template"
        raise InvalidRequest(f"'{where}' has no {{}} for the label.", param=where)


class ZeroShotImageParameters(CandidateParameters):
    """The labels, and how they are asked about."""

    hypothesis_template: Template = "This is a photo of {}."
    """The sentence around each label, {} in its place."""


class ZeroShotImageInputs(PictureInputs):
    """A picture, and labels that no model was trained on."""

    kind = IMAGE_CLASSIFICATION

    parameters: Annotated[ZeroShotImageParameters, Field(description=_PARAMETERS)]

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for a template without a place."""
        super().check(at)
        _check_template(self.parameters.hypothesis_template)

    def task(self) -> TaskInput:
        """Return the input of the task."""
        labels = self.parameters.labels
        template = self.parameters.hypothesis_template
        return ClassificationInput(
            image=self.file, labels=labels, template=template, top=len(labels)
        )


class ObjectDetectionParameters(Request):
    """What counts as found."""

    threshold: Threshold = 0.5
    """Leave out what the model is less sure of than this."""


class ObjectDetectionInputs(PictureInputs):
    """A picture to find things in, of the model's own classes."""

    kind = DETECTION

    parameters: Annotated[ObjectDetectionParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=ObjectDetectionParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        return DetectionInput(image=self.file, threshold=self.parameters.threshold)


class ZeroShotDetectionParameters(CandidateParameters):
    """What to look for, and what counts as found."""

    threshold: Threshold = 0.1
    """Leave out what the model is less sure of than this."""
    top_k: TopK | None = None
    """How many of the surest are returned; all by default."""


class ZeroShotDetectionInputs(PictureInputs):
    """A picture, and what to look for in it."""

    kind = DETECTION

    parameters: Annotated[ZeroShotDetectionParameters, Field(description=_PARAMETERS)]

    def task(self) -> TaskInput:
        """Return the input of the task."""
        said = self.parameters
        return DetectionInput(image=self.file, labels=said.labels, threshold=said.threshold)


class DepthEstimationInputs(PictureInputs):
    """A picture to measure."""

    kind = DEPTH

    parameters: Annotated[NoParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=NoParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        return DepthInput(image=self.file)


class ImageSegmentationParameters(Request):
    """How a picture is cut up."""

    subtask: SegmentMode | None = None
    """semantic, instance or panoptic; the richest that the model knows by default."""
    threshold: Threshold | None = None
    """Leave out what the model is less sure of than this."""


class ImageSegmentationInputs(PictureInputs):
    """A picture to cut up."""

    kind = SEGMENTATION

    parameters: Annotated[ImageSegmentationParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=ImageSegmentationParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        said = self.parameters
        return SegmentationInput(image=self.file, mode=said.subtask, threshold=said.threshold)


class ImageToTextParameters(Request):
    """How a caption is written; without chance."""

    prompt: Annotated[str, Field(max_length=32_000)] | None = None
    """What the caption continues; of a chat model, the question."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most tokens of the caption; 64 by default."""


class ImageToTextInputs(PictureInputs):
    """A picture to say something about."""

    kind = CAPTION

    parameters: Annotated[ImageToTextParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=ImageToTextParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        said = self.parameters
        limits = wishes(max_tokens=said.max_new_tokens)
        return CaptionInput(image=self.file, prompt=said.prompt or "", **limits)


class ImageFeatureParameters(Request):
    """Which vectors."""

    pool: bool = False
    """Whether to return one vector for the whole picture, as the model pools it."""


class ImageFeatureInputs(PictureInputs):
    """A picture to see the last hidden states of."""

    kind = IMAGE_FEATURES

    parameters: Annotated[ImageFeatureParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=ImageFeatureParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        return ImageFeaturesInput(image=self.file, pool=self.parameters.pool)


class AudioClassificationParameters(Request):
    """How sounds are labelled."""

    top_k: TopK = 5
    """How many of the best labels are returned."""
    function_to_apply: Activation | None = None
    """How scores are made of logits; what the model's configuration says by default."""


class AudioClassificationInputs(SoundInputs):
    """A sound to name by the model's own classes: a language, a mood, an instrument, ..."""

    kind = AUDIO_CLASSIFICATION

    parameters: Annotated[AudioClassificationParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=AudioClassificationParameters
    )

    def task(self) -> TaskInput:
        """Return the input of the task."""
        said = self.parameters
        return AudioClassificationInput(
            file=self.file, top=said.top_k, activation=said.function_to_apply
        )


class ZeroShotAudioParameters(CandidateParameters):
    """The labels, and how they are asked about."""

    hypothesis_template: Template = "This is a sound of {}."
    """The sentence around each label, {} in its place."""


class ZeroShotAudioInputs(SoundInputs):
    """A sound, and labels that no model was trained on."""

    kind = ZERO_SHOT_AUDIO

    parameters: Annotated[ZeroShotAudioParameters, Field(description=_PARAMETERS)]

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for a template without a place."""
        super().check(at)
        _check_template(self.parameters.hypothesis_template)

    def task(self) -> TaskInput:
        """Return the input of the task."""
        said = self.parameters
        return ZeroShotAudioInput(
            file=self.file, labels=said.labels, template=said.hypothesis_template
        )


class RecognitionParameters(Request):
    """What is spoken, and what is to be known of it."""

    language: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    """What is spoken: an ISO 639-1 code such as de, or a name such as german; heard by default."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """translate writes it down in English."""
    return_timestamps: bool | Literal["word"] = False
    """Whether to return chunks with their times; "word" makes them words."""


class RecognitionInputs(SoundInputs):
    """A sound to write down."""

    kind = TRANSCRIPTION

    parameters: Annotated[RecognitionParameters, Field(description=_PARAMETERS)] = Field(
        default_factory=RecognitionParameters
    )

    @property
    def does(self) -> Kind:
        """The kind of its task."""
        return TRANSLATION if self.parameters.task == "translate" else self.kind

    def task(self) -> TaskInput:
        """Return the task. A seed is drawn here, so that every node hears the same."""
        said = self.parameters
        return TranscriptionInput(
            file=self.file,
            language=said.language,
            seed=random.getrandbits(31),
            words=said.return_timestamps == "word",
        )


class SpeakingParameters(Request):
    """Who speaks, and how."""

    voice: VoiceName | None = None
    """One of the model's voices; its first by default."""
    speed: Speed | None = None
    """1 is the voice's own pace."""
    seed: Seed | None = None
    """The same seed gives the same samples."""


class SpeakingInputs(Request):
    """A text to say."""

    kind: ClassVar[Kind] = SPEECH

    model: ModelName
    """A name from GET /v1/models; GET /v1/pipelines lists those of each task."""
    inputs: Text
    """What to say."""
    parameters: SpeakingParameters = Field(default_factory=SpeakingParameters)

    @property
    def does(self) -> Kind:
        """The kind of its task."""
        return self.kind

    def task(self) -> TaskInput:
        """Return the input of the task: a whole file, whose header says how long it is."""
        said = self.parameters
        return task_of(
            text=self.inputs,
            voice=said.voice,
            speed=said.speed,
            seed=said.seed,
            format="wav",
            whole=True,
        )
