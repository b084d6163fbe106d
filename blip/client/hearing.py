"""Sounds in, text out."""

from __future__ import annotations

from typing import Any

from blip.client.connection import Connection, body_of, form_of
from blip.client.hearing_answers import TranscriptAnswer, transcript_from
from blip.client.options import Require, task_headers


class HearingClient(Connection):
    """What models of speech are asked."""

    async def transcribe(
        self,
        model: str,
        file: bytes,
        *,
        words: bool = False,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TranscriptAnswer:
        """Write down what is said in the bytes of a sound file: WAV, MP3, FLAC or Ogg.

        With ``words`` each has its time. Options go on under the route's names (``language``,
        ``prompt``, ``temperature``, ``seed``).
        """
        granularities = ["segment", "word"] if words else []
        headers = task_headers(priority, deadline, require)
        return await self._hear("transcriptions", model, file, granularities, options, headers)

    async def translate(
        self,
        model: str,
        file: bytes,
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> TranscriptAnswer:
        """Write down in English what is said in a sound; options as :meth:`transcribe`'s."""
        headers = task_headers(priority, deadline, require)
        return await self._hear("translations", model, file, [], options, headers)

    async def _hear(
        self,
        route: str,
        model: str,
        file: bytes,
        granularities: list[str],
        options: dict[str, Any],
        headers: dict[str, str],
    ) -> TranscriptAnswer:
        form = form_of(body_of(model, options), file=file)
        form.add_field("response_format", "verbose_json")
        for each in granularities:
            form.add_field("timestamp_granularities[]", each)
        path = f"/v1/audio/{route}"
        return transcript_from(*await self._json("POST", path, form, headers))
