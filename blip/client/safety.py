"""Moderation."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip.client.connection import Connection
from blip.client.options import Require, task_headers


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a model says of something; ``scores`` has the categories that it judges, no others."""

    flagged: bool
    categories: tuple[str, ...]
    scores: Mapping[str, float]


class SafetyClient(Connection):
    """What models that moderate are asked."""

    async def moderate(
        self,
        texts: str | Sequence[str] = (),
        *,
        images: Sequence[bytes] = (),
        model: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
    ) -> list[Verdict]:
        """Return a verdict on each text; with the files of ``images``, a single one on everything.

        Without a ``model`` the gateway's own is asked.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        body: dict[str, Any] = {"input": texts}
        if images:
            parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
            for image in images:
                # the gateway looks at what it is, whatever it is called
                url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            body["input"] = parts
        if model is not None:
            body["model"] = model
        headers = task_headers(priority, deadline, require)
        answer, _ = await self._json("POST", "/v1/moderations", body, headers)
        return [_verdict(row) for row in answer["results"]]


def _verdict(row: Mapping[str, Any]) -> Verdict:
    judged = [name for name, by in row["category_applied_input_types"].items() if by]
    return Verdict(
        bool(row["flagged"]),
        tuple(name for name in judged if row["categories"][name]),
        {name: row["category_scores"][name] for name in judged},
    )
