"""Reads an engine's answers: chunks of a stream to deltas, an embeddings answer to float32. Pure.

Engines agree on the shape and differ in what they leave out: the first chunk may carry a role and
no content, content may be ``null``, a chunk may have no choices, ``usage`` may be on every chunk,
on the last one or on none. What is there is read, and what is wrong is named.

Deltas are without token ids: an engine's vocabulary is its own, and it does not tell them. A
half-delivered answer can therefore not be continued elsewhere, see
:meth:`blip.gateway.call.LiveCall.resume`.
"""

from __future__ import annotations

import array
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from blip.errors import BlipError
from blip.kinds.text import PREFILL_SHARE, Delta, Finish, FinishReason, TokenLogprob
from blip.kinds.tools import CallPiece
from blip_node.upstreams.events import Event
from blip_node.upstreams.failures import broken_off, in_stream, lied

#: The end of a stream, in OpenAI's words.
DONE = "[DONE]"

#: Reasons that mean that the engine gave up: SGLang's and vLLM's word for a request that was
#: dropped, by an operator or because the engine ends.
_ABORTED = ("abort", "error", "cancelled")

#: What else than stop is a reason to end.
_REASONS: dict[str, FinishReason] = {"length": "length", "tool_calls": "tool_calls"}


class TextAnswer:
    """One streamed answer of chat or completion, as it grows."""

    def __init__(self, engine: str, *, chat: bool) -> None:
        self._engine = engine
        self._chat = chat
        self._usage: dict[str, int] | None = None
        self._pieces = 0
        self._stop: str | None = None
        #: The calls so far: the engine's index and id of each.
        self._called: list[tuple[int, str]] = []
        self.reason: FinishReason | None = None
        #: Whether the engine said that this was all.
        self.done = False

    def take(self, event: Event) -> Delta | None:
        """Take an event; return what is new in it, None if that is no text.

        Raises :class:`~blip.errors.BlipError` for an error in the stream, or a chunk that is none.
        """
        if event.data.strip() == DONE:
            self.done = True
            return None
        chunk = self._parse(event.data)
        if event.error or chunk.get("error"):
            raise in_stream(self._engine, chunk.get("error") or chunk)
        self._count(chunk.get("usage"))
        choices = chunk.get("choices")
        if choices is None or choices == []:
            return None  # the usage, or a sign of life
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict):
            raise self._wrong("choices", choices)
        text = self._text(choice)
        logprobs = self._logprobs(choice.get("logprobs"))
        calls = self._calls(choice)
        self._finish(choice.get("finish_reason"))
        if isinstance(choice.get("stop_reason"), str):  # vLLM's: the stop sequence
            self._stop = choice["stop_reason"]
        if not text and not logprobs and not calls:
            return None
        self._pieces += 1
        return Delta(text, [], logprobs, calls or None)

    def finish(self) -> Finish:
        """Return how it ended.

        Raises :class:`~blip.errors.NodeLost` if the engine never came to an end.
        """
        if self.reason is None:
            raise broken_off(self._engine, "ended its answer without saying why")
        reason = self.reason
        if reason == "stop" and self._called:
            reason = "tool_calls"  # some engines say stop where a call was asked for
        return Finish(reason, stop=self._stop if reason == "stop" else None)

    @property
    def usage(self) -> dict[str, int]:
        """What the client is told: the engine's count, else the chunks, and ``counted_chunks``.

        A chunk is mostly, and not always, a token.
        """
        if self._usage is not None:
            return self._usage
        return {"completion_tokens": self._pieces, "counted_chunks": self._pieces}

    @property
    def counted(self) -> bool:
        """Whether the engine counted the tokens itself."""
        return self._usage is not None

    @property
    def units(self) -> float:
        """The work that was done, in the units of text kinds."""
        usage = self.usage
        return usage.get("prompt_tokens", 0) * PREFILL_SHARE + usage["completion_tokens"]

    def _parse(self, data: str) -> Mapping[str, Any]:
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise lied(self._engine, f"sent an event that is no chunk: {data[:80]!r}")
        return chunk

    def _wrong(self, what: str, found: object) -> BlipError:
        return lied(self._engine, f"sent a chunk whose {what} is {str(found)[:80]!r}")

    def _text(self, choice: Mapping[str, Any]) -> str:
        if self._chat:
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                raise self._wrong("delta", delta)
            text = delta.get("content")
        else:
            text = choice.get("text")
        if text is None:
            return ""
        if not isinstance(text, str):
            raise self._wrong("text", text)
        return text

    def _calls(self, choice: Mapping[str, Any]) -> list[CallPiece]:
        """Read pieces of calls. Some engines give calls that come whole the same index."""
        delta = choice.get("delta")
        given = delta.get("tool_calls") if isinstance(delta, dict) else None
        if not given:
            return []
        pieces: list[CallPiece] = []
        try:
            for piece in given:
                function = piece["function"]
                index, id = int(piece.get("index") or 0), str(piece.get("id") or "")
                name, arguments = function.get("name") or "", function.get("arguments") or ""
                numbers = [n for n, (its, _) in enumerate(self._called) if its == index]
                fresh = not numbers or bool(name and id and id != self._called[numbers[-1]][1])
                if fresh:
                    self._called.append((index, id))
                number = len(self._called) - 1 if fresh else numbers[-1]
                pieces.append(CallPiece(number, str(name) if fresh else "", str(arguments)))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._wrong("tool_calls", given) from None
        return [piece for piece in pieces if piece.name or piece.arguments]

    def _finish(self, reason: Any) -> None:
        if reason is None or reason == "":
            return
        if not isinstance(reason, str):
            raise self._wrong("finish_reason", reason)
        if reason in _ABORTED:
            raise broken_off(self._engine, f"gave the answer up ({reason})")
        self.reason = _REASONS.get(reason, "stop")

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        found = {
            key: usage[key]
            for key in ("prompt_tokens", "completion_tokens")
            if isinstance(usage.get(key), int) and usage[key] >= 0
        }
        if "completion_tokens" in found:
            self._usage = found

    def _logprobs(self, given: Any) -> list[TokenLogprob] | None:
        if given is None:
            return None
        try:
            rows = _chat_rows(given) if "content" in given else _completion_rows(given)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise self._wrong("logprobs", given) from None
        return rows or None


def _chat_rows(given: Mapping[str, Any]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            row["token"],
            float(row["logprob"]),
            _raw(row),
            [
                (top["token"], float(top["logprob"]), _raw(top))
                for top in row.get("top_logprobs") or ()
            ],
        )
        for row in given["content"] or ()
    ]


def _raw(row: Mapping[str, Any]) -> bytes:
    raw = row.get("bytes")
    return bytes(raw) if raw is not None else str(row["token"]).encode()


def _completion_rows(given: Mapping[str, Any]) -> list[TokenLogprob]:
    tokens: list[str] = given["tokens"]
    tops: Sequence[Mapping[str, float] | None] = given.get("top_logprobs") or [None] * len(tokens)
    return [
        TokenLogprob(
            token,
            # the first token of an echoed prompt has none: nothing came before it
            -math.inf if logprob is None else float(logprob),
            token.encode(),
            [(text, float(value), text.encode()) for text, value in (top or {}).items()],
        )
        for token, logprob, top in zip(tokens, given["token_logprobs"], tops, strict=True)
    ]


def read_vectors(engine: str, body: bytes, count: int) -> tuple[bytes, int]:
    """Return the vectors of an embeddings answer as rows of float32, and the prompt's tokens.

    Raises :class:`~blip.errors.Unavailable` for an answer that is not ``count`` vectors of one
    length.
    """
    try:
        answer = json.loads(body)
        rows = sorted(answer["data"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(count)):
            raise lied(engine, f"answered {count} texts with {len(rows)} vectors")
        numbers = array.array("f")
        for row in rows:
            numbers.extend(row["embedding"])
        sizes = {len(row["embedding"]) for row in rows}
    except (ValueError, KeyError, TypeError):
        raise lied(
            engine, "answered POST /embeddings with something that is no list of vectors"
        ) from None
    if len(sizes) != 1 or not numbers:
        raise lied(engine, "answered POST /embeddings with vectors of different lengths")
    if not math.isfinite(sum(numbers)):
        raise lied(engine, "answered POST /embeddings with numbers that are not finite")
    if sys.byteorder == "big":
        numbers.byteswap()
    usage = answer.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return numbers.tobytes(), tokens if isinstance(tokens, int) and tokens >= 0 else 0
