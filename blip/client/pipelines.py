"""What is read once: documents by relevance, and transformers' tasks on texts and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from blip.client.answers import Origin
from blip.client.connection import Connection, body_of, form_of
from blip.client.options import Require, task_headers


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document's place in the request, and how well it answers the query."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class RerankAnswer:
    """Documents, best first; ``warnings`` say if some were cut."""

    ranking: list[Ranked]
    warnings: list[str]
    usage: Mapping[str, int]
    origin: Origin


@dataclass(frozen=True, slots=True)
class PipelineAnswer:
    """A result for each input, in their order, in the shape of docs/pipelines.md."""

    results: list[Any]
    usage: Mapping[str, int]
    origin: Origin


class PipelineClient(Connection):
    """What models of one pass are asked."""

    async def rerank(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **options: Any,
    ) -> RerankAnswer:
        """Sort documents by how well they answer a query.

        Options go on under the route's names (``truncate``, ``max_tokens_per_doc``,
        ``raw_scores``).
        """
        said = {"query": query, "documents": list(documents), "top_n": top_n, **options}
        headers = task_headers(priority, deadline, require)
        body, origin = await self._json("POST", "/v1/rerank", body_of(model, said), headers)
        ranking = [Ranked(int(r["index"]), float(r["relevance_score"])) for r in body["results"]]
        return RerankAnswer(ranking, body["meta"]["warnings"], body["usage"], origin)

    async def pipeline(
        self,
        task: str,
        /,
        model: str,
        inputs: str | bytes | Mapping[str, Any] | Sequence[Any],
        *,
        priority: int | None = None,
        deadline: float | None = None,
        require: Require | None = None,
        **parameters: Any,
    ) -> PipelineAnswer:
        """Run one of transformers' tasks on one input or several; parameters as it names them.

        ``bytes`` are a picture's or a sound's file, one for a call.
        """
        known = {name: value for name, value in parameters.items() if value is not None}
        headers = task_headers(priority, deadline, require)
        said: dict[str, Any] | aiohttp.FormData
        if isinstance(inputs, bytes):
            said = form_of({"model": model, "parameters": json.dumps(known)}, inputs=inputs)
        else:
            whole = inputs if isinstance(inputs, str | Mapping) else list(inputs)
            said = body_of(model, {"inputs": whole, "parameters": known})
        path = f"/v1/pipelines/{quote(task, safe='')}"
        body, origin = await self._json("POST", path, said, headers)
        return PipelineAnswer(body["results"], body["usage"], origin)
