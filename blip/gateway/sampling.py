"""What requests for text share: how tokens are chosen, and how much comes back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from blip.errors import InvalidRequest
from blip.gateway.fields import Ignored, Request
from blip.gateway.formats import StructuredOutputs

#: Choices of one prompt. OpenAI allows 128; here each is a task of its own on the mesh.
MAX_CHOICES = 16

#: Token ids and bias keys: no vocabulary is near this, and it travels in 32 bits.
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[Stop], Field(max_length=4)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]
MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def wishes(**given: Any) -> dict[str, Any]:
    """Return the keyword arguments of a :class:`~blip.kinds.text.TextInput`; null asks nothing."""
    found = {name: value for name, value in given.items() if value is not None}
    if isinstance(found.get("stop"), str):
        found["stop"] = [found["stop"]]
    if found.get("top_k") == -1:
        found["top_k"] = 0
    return found


class StreamOptions(Request):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None
    """Whether the last chunk says how many tokens were used."""
    include_obfuscation: Annotated[bool | None, Ignored()] = None


class SamplingRequest(Request):
    """Fields of OpenAI's chat and completion requests that mean the same in both."""

    model: ModelName
    """A name from GET /v1/models."""
    max_tokens: MaxTokens | None = None
    """Most tokens of one answer."""
    temperature: Temperature | None = None
    """0 takes the likeliest token always, 1 (the default) samples as the model was trained."""
    top_p: TopP | None = None
    """Sample from the likeliest tokens that make up this much probability; 1 by default."""
    top_k: TopK | None = None
    """Sample from this many likeliest tokens; 0 or -1 for all. vLLM's, not OpenAI's."""
    repetition_penalty: RepetitionPenalty | None = None
    """Above 1 makes tokens less likely that were there before. vLLM's, not OpenAI's."""
    frequency_penalty: Penalty | None = None
    """Makes tokens less likely the more often they were generated."""
    presence_penalty: Penalty | None = None
    """Makes tokens less likely once they were generated."""
    logit_bias: dict[TokenId, Bias] | None = None
    """Token id to a number from -100 to 100 that is added to its logit."""
    stop: Stop | Stops | None = None
    """Texts, at most four, before which an answer ends."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as the devices that may serve it agree."""
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Answers a prompt; 1 by default."""
    stream: bool | None = None
    """Whether to send the answer piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    structured_outputs: StructuredOutputs | None = None
    """A form that the answer keeps to: a schema, a regular expression, ... vLLM's, not OpenAI's."""
    user: Annotated[str | None, Ignored()] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(
                "'stream_options' needs 'stream': true.", param=at + "stream_options"
            )

    @property
    def choices(self) -> int:
        """How many answers a prompt gets."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
        """Return the keyword arguments of a :class:`~blip.kinds.text.TextInput`."""
        given = {name: getattr(self, name) for name in _SHARED & self.model_fields_set}
        form = self.structured_outputs
        grammar = None if form is None else form.form("structured_outputs.")
        return wishes(**given, max_tokens=max_tokens, logprobs=logprobs, grammar=grammar)


_SHARED = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "stop",
        "seed",
    }
)
