"""Keeps a policy: looks at what a picture is to be of before it is made, and at what was made.

Everything fails closed. Whatever keeps a verdict from being reached, a model that is gone or
answers nonsense, is an error of the request, never a pass. A route of a kind in
:data:`blip.gateway.policy.GUARDED` calls :func:`admit` before it starts tasks and :func:`release`
before it shows results; one that forgot the first cannot start any, see
:meth:`blip.gateway.exchange.Exchange.start`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from blip.errors import (
    BlipError,
    InvalidRequest,
    NotPermitted,
    PolicyViolation,
    RuntimeFailed,
    Unavailable,
    UnsupportedField,
)
from blip.gateway.exchange import Exchange
from blip.gateway.policy import WORDS
from blip.kinds.moderation import MODERATION, ModerationInput, Verdict, verdicts_from_wire
from blip.protocol.messages import Payload


async def admit(
    exchange: Exchange,
    texts: Mapping[str, str | None],
    pictures: Mapping[str, bytes | None] | None = None,
    *,
    streams: bool = False,
    films: bool = False,
) -> None:
    """Let a request through, or raise why not.

    ``texts`` and ``pictures`` are what it says, by field; ``streams`` says that the
    route shows results before anybody could look at them, ``films`` that what is made is a video,
    whose frames no moderation model looks at. Raises :class:`~blip.errors.PolicyViolation`,
    ``NotPermitted`` for a video whose pictures were to be checked, and ``Unavailable`` where
    nothing can be said.
    """
    policy = exchange.policy
    exchange.admitted = True
    if policy is None:
        return
    said = {field: text for field, text in texts.items() if text}
    for field, text in said.items():
        if found := policy.words_in(text):
            words = ", ".join(f"'{word}'" for word in found)
            raise PolicyViolation(
                f"'{field}' has words that are not allowed here: {words}.",
                param=field,
                details={"categories": [WORDS], "words": found, "policy": policy.name},
            )
    if policy.pictures and films:
        raise NotPermitted(
            "This API key may have only pictures that were checked, and the frames of a video "
            "cannot be.",
            hint="Ask for pictures, or use a key whose policy has 'pictures' off.",
            details={"policy": policy.name},
        )
    if policy.pictures and streams:
        raise UnsupportedField(
            "'stream' would show pictures before they are checked, as is done for this API key.",
            hint="Leave 'stream' out.",
            param="stream",
        )
    if policy.prompts and said:
        model = exchange.gateway.settings.moderation_model
        verdicts = await _asked(exchange, model, texts=list(said.values()))
        _judge(exchange, dict(zip(said, verdicts, strict=True)))
    files = {field: file for field, file in (pictures or {}).items() if file}
    if policy.pictures and files:
        model = exchange.gateway.settings.moderation_image_model
        verdicts = await _asked(exchange, model, images=list(files.values()))
        _judge(exchange, dict(zip(files, verdicts, strict=True)))


async def release(exchange: Exchange, pictures: Sequence[Payload]) -> None:
    """Let pictures go out, or raise why not, as :func:`admit` does."""
    policy = exchange.policy
    if policy is None or not policy.pictures:
        return
    model = exchange.gateway.settings.moderation_image_model
    verdicts = await _asked(exchange, model, images=[bytes(each) for each in pictures])
    _judge(exchange, {f"picture {number}": each for number, each in enumerate(verdicts)}, made=True)


async def moderate(
    exchange: Exchange, model: str, *, texts: Sequence[str] = (), images: Sequence[bytes] = ()
) -> list[Verdict]:
    """Return a model's verdicts on texts, then pictures. Raises what the task does.

    It runs beside the calls of the exchange, at its priority and deadline; what its device must be
    is said of the request's own tasks only.
    """
    mesh, metrics = exchange.gateway.mesh, exchange.gateway.metrics
    value = ModerationInput(texts=list(texts), images=list(images))
    call = mesh.call(MODERATION, model, value, replace(exchange.options, require={}))
    outcome = "cancelled"
    try:
        answer = await call.answer()
        found = verdicts_from_wire(answer.payload, len(texts) + len(images))
        outcome = "succeeded"
        metrics.usage(model, answer.usage)
    except BlipError as error:
        outcome = error.code
        raise
    except (ValueError, TypeError) as error:
        outcome = RuntimeFailed.code
        raise RuntimeFailed(f"The answer of '{model}' is no verdict: {error}.") from None
    finally:
        call.cancel()
        metrics.task(MODERATION.name, outcome, call.timing.first)
    return found


async def _asked(
    exchange: Exchange, model: str, *, texts: Sequence[str] = (), images: Sequence[bytes] = ()
) -> list[Verdict]:
    try:
        return await moderate(exchange, model, texts=texts, images=images)
    except InvalidRequest:
        raise  # it cannot be judged as it is: a picture that is none
    except BlipError as error:
        raise Unavailable(
            f"This cannot be checked against the policy for this API key, and is therefore "
            f"refused: {error.message}",
            hint="It is not the request's fault; try again once the moderation model is back.",
            retry_after=error.retry_after,
            details={"reason": error.code, "model": model},
        ) from error


def _judge(exchange: Exchange, verdicts: Mapping[str, Verdict], *, made: bool = False) -> None:
    policy = exchange.policy
    assert policy is not None
    for field, verdict in verdicts.items():
        categories = policy.refused(verdict)
        if not categories:
            continue
        what = "A picture that was made" if made else f"'{field}'"
        raise PolicyViolation(
            f"{what} is not allowed here: {', '.join(categories)}.",
            param=None if made else field,
            details={
                "categories": categories,
                "scores": {name: round(verdict.scores[name], 4) for name in categories},
                "policy": policy.name,
            },
        )
