"""Videos: begun, waited for, fetched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blip.client.answers import Origin, error_from_envelope
from blip.client.connection import Connection, body_of, form_of
from blip.client.options import Require, task_headers
from blip.errors import BlipError

#: Seconds between two looks at a video that is being made. A step of one takes about as long.
POLL = 1.0


@dataclass(frozen=True, slots=True)
class VideoAnswer:
    """A video: the bytes of its file, what the file is (``video/mp4``), and how it was made.

    ``url`` is where anyone can fetch it until it expires; ``id`` names it at the gateway.
    """

    file: bytes
    media: str
    id: str
    url: str
    seed: int
    size: str
    frames: int
    fps: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class VideoProgress:
    """How far a video is: ``status`` is queued or in_progress, ``percent`` that of its steps."""

    id: str
    status: str
    percent: int


class VideoClient(Connection):
    """What models of videos are asked."""

    async def video(
        self,
        model: str,
        prompt: str,
        *,
        image: bytes | None = None,
        seconds: float | None = None,
        size: str | None = None,
        progress: Callable[[VideoProgress], None] | None = None,
        poll: float = POLL,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> VideoAnswer:
        """Make a video and wait for it; with the bytes of an ``image`` it begins with that.

        ``progress`` is called each time it has come further, which is looked at every ``poll``
        seconds. Whoever stops waiting stops the video. Options go on under the route's names
        (``negative_prompt``, ``steps``, ``guidance_scale``, ``seed``, ``scheduler``, ``fps``,
        ``num_frames``, ``output_format``).
        """
        headers = task_headers(priority, deadline, require)
        asked = {"prompt": prompt, "seconds": seconds, "size": size, **options}
        said = body_of(model, asked)
        body = said if image is None else form_of(said, input_reference=image)
        video, origin = await self._json("POST", "/v1/videos", body, headers)
        path = f"/v1/videos/{video['id']}"
        try:
            video = await self._ended(path, video, progress, poll)
            status, file, answered = await self._send("GET", f"{path}/content")
            self._check(status, file, answered)
        except BaseException:
            # nobody waits for it any more; if the gateway is gone, it has stopped it too
            with contextlib.suppress(BlipError):
                await asyncio.shield(self._send("DELETE", path))
            raise
        return VideoAnswer(
            file=file,
            media=answered.get("Content-Type", ""),
            id=video["id"],
            url=video.get("url") or "",
            seed=int(video["seed"]),
            size=video["size"],
            frames=int(video.get("num_frames") or 0),
            fps=int(video.get("fps") or 0),
            origin=origin,
        )

    async def _ended(
        self,
        path: str,
        video: Mapping[str, Any],
        progress: Callable[[VideoProgress], None] | None,
        poll: float,
    ) -> Mapping[str, Any]:
        """Wait for the end; return the video, or raise why there is none."""
        told = None
        while video["status"] in ("queued", "in_progress"):
            here = VideoProgress(video["id"], video["status"], int(video["progress"]))
            if progress is not None and here != told:
                progress(here)
            told = here
            await asyncio.sleep(poll)
            video, _ = await self._json("GET", path)
        error = video.get("error")
        if error is not None:
            raise error_from_envelope(error)
        return video
