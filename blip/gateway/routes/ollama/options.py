"""The fields that Ollama's requests for text share, and how tokens are chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from blip.errors import InvalidRequest, UnsupportedField
from blip.gateway.fields import Ignored, Refused, Request
from blip.gateway.formats import Schema, any_object, of_schema
from blip.gateway.sampling import (
    ModelName,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Stops,
    Temperature,
    TopK,
    TopP,
    wishes,
)

#: Ollama's own defaults, as its documentation of Modelfiles has them.
_TEMPERATURE = 0.8
_TOP_K = 40
_TOP_P = 0.9


class Options(Request):
    """How tokens are chosen. What concerns loading is the node's business and ignored."""

    temperature: Temperature | None = None
    """0 takes the likeliest token always; 0.8 by default, as in Ollama."""
    top_k: TopK | None = None
    """Sample from this many likeliest tokens, 0 for all; 40 by default, as in Ollama."""
    top_p: TopP | None = None
    """Sample from the likeliest tokens of this much probability; 0.9 by default, as in Ollama."""
    seed: Seed | None = None
    """Makes sampling repeatable, as far as devices agree; below 0 for none."""
    num_predict: Annotated[int, Field(ge=-2, lt=2**31)] | None = None
    """Most tokens of the answer; below 1 for all that the context has room for."""
    stop: Stop | Stops | None = None
    """Texts, at most four, before which the answer ends."""
    repeat_penalty: RepetitionPenalty | None = None
    """Above 1 makes tokens less likely that were there before."""
    presence_penalty: Penalty | None = None
    """Makes tokens less likely once they were generated."""
    frequency_penalty: Penalty | None = None
    """Makes tokens less likely the more often they were generated."""
    repeat_last_n: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """How far back penalties look: here always the whole text, which is -1."""

    draft_num_predict: Annotated[Any, Ignored()] = None
    embedding_only: Annotated[Any, Ignored()] = None
    f16_kv: Annotated[Any, Ignored()] = None
    logits_all: Annotated[Any, Ignored()] = None
    low_vram: Annotated[Any, Ignored()] = None
    main_gpu: Annotated[Any, Ignored()] = None
    mirostat_eta: Annotated[Any, Ignored()] = None
    mirostat_tau: Annotated[Any, Ignored()] = None
    num_batch: Annotated[Any, Ignored()] = None
    num_ctx: Annotated[Any, Ignored()] = None
    num_gpu: Annotated[Any, Ignored()] = None
    num_keep: Annotated[Any, Ignored()] = None
    num_thread: Annotated[Any, Ignored()] = None
    numa: Annotated[Any, Ignored()] = None
    use_mlock: Annotated[Any, Ignored()] = None
    use_mmap: Annotated[Any, Ignored()] = None
    vocab_only: Annotated[Any, Ignored()] = None

    min_p: Annotated[Any, Refused("Use top_p.", 0)] = None
    mirostat: Annotated[Any, Refused("Use top_p.", 0)] = None
    penalize_newline: Annotated[Any, Refused("Line ends are penalized as any other.", True)] = None
    tfs_z: Annotated[Any, Refused("Use top_p.", 1)] = None
    typical_p: Annotated[Any, Refused("Use top_p.", 1)] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        penalties = (
            (self.repeat_penalty or 1) != 1 or self.presence_penalty or (self.frequency_penalty)
        )
        if penalties and self.repeat_last_n not in (None, -1):
            raise UnsupportedField(
                f"'{at}repeat_last_n' is not supported and would change the answer.",
                hint="Penalties here look at the whole text: set it to -1, or leave it out.",
                param=at + "repeat_last_n",
            )

    def sampling(self, logprobs: int | None) -> dict[str, Any]:
        """Return the keyword arguments of a :class:`~blip.kinds.text.TextInput`."""
        seed, limit = self.seed, self.num_predict
        return wishes(
            temperature=_TEMPERATURE if self.temperature is None else self.temperature,
            top_k=_TOP_K if self.top_k is None else self.top_k,
            top_p=_TOP_P if self.top_p is None else self.top_p,
            seed=None if seed is None or seed < 0 else seed,
            max_tokens=None if limit is None or limit < 1 else limit,
            stop=self.stop or None,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logprobs=logprobs,
        )


class OllamaText(Request):
    """The fields of chat and generate that mean the same in both."""

    model: ModelName
    """A name from GET /api/tags; :latest may stand behind it."""
    stream: bool | None = None
    """False for the answer as a whole; true by default, as in Ollama."""
    options: Options | None = None
    logprobs: bool | None = None
    """Whether to say how likely each token was."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """How many alternatives to list for each token; needs logprobs."""

    format: Literal["", "json"] | Schema | None = None
    """A form that the answer keeps to: json for any object, or a JSON Schema."""

    keep_alive: Annotated[Any, Ignored()] = None

    think: Annotated[Any, Refused("Say in the prompt how hard to think.", False)] = None

    def check(self, at: str = "") -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for what the types alone do not say."""
        super().check(at)
        if self.options is not None:
            self.options.check(at + "options.")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")

    @property
    def streams(self) -> bool:
        """Whether the answer comes line by line."""
        return self.stream is not False

    def sampling(self) -> dict[str, Any]:
        """Return the keyword arguments of a :class:`~blip.kinds.text.TextInput`."""
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        given = (self.options or Options()).sampling(logprobs)
        if self.format:
            as_json = self.format == "json"
            given["grammar"] = any_object("format") if as_json else of_schema(self.format, "format")
        return given
