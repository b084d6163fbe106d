"""Transcripts as subtitles: SubRip (``srt``) and WebVTT (``vtt``). Pure.

WebVTT: https://www.w3.org/TR/webvtt1/. SubRip has no standard; this is what players read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol


class Caption(Protocol):
    """What stands on the screen from ``start`` to ``end``, in seconds."""

    @property
    def start(self) -> float:
        """When it appears."""
        ...

    @property
    def end(self) -> float:
        """When it goes."""
        ...

    @property
    def text(self) -> str:
        """What it says."""
        ...


#: What would end a WebVTT cue's times, or begin a tag.
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ESCAPED = re.compile("[&<>]")


def srt(segments: Iterable[Caption]) -> str:
    """Return SubRip: numbered cues, times with a comma."""
    cues = []
    for number, segment in enumerate(_shown(segments), 1):
        times = f"{_time(segment.start, ',')} --> {_time(segment.end, ',')}"
        cues.append(f"{number}\n{times}\n{_line(segment.text)}\n")
    return "\n".join(cues)


def vtt(segments: Iterable[Caption]) -> str:
    """Return WebVTT: a head, and cues with a point in their times."""
    cues = ["WEBVTT\n"]
    for segment in _shown(segments):
        text = _ESCAPED.sub(lambda found: _ESCAPES[found[0]], _line(segment.text))
        cues.append(f"{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n{text}\n")
    return "\n".join(cues)


def _shown(segments: Iterable[Caption]) -> Iterable[Caption]:
    return (segment for segment in segments if segment.text.strip())


def _line(text: str) -> str:
    # an empty line would end the cue
    return " ".join(text.split())


def _time(seconds: float, point: str) -> str:
    whole = round(max(0.0, seconds) * 1000)
    minutes, rest = divmod(whole, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
