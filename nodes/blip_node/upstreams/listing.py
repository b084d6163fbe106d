"""What an engine's answer to ``GET /v1/models`` says. Pure.

Every engine answers ``{"object": "list", "data": [{"id": ..., "owned_by": ...}]}`` and adds what
it likes: vLLM and SGLang ``max_model_len``, llama.cpp ``meta`` (whose ``n_ctx_train`` is what the
model was trained on, not what the server allows) and ``models`` with ``capabilities``, a blip
gateway ``kinds`` and ``context``. An Ollama without models answers ``"data": null``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip.errors import Unavailable
from blip_node.upstreams.engine import DIALECTS
from blip_node.upstreams.failures import message_of

#: Kinds that the runtime can ask an engine for.
KINDS = ("chat", "completion", "embedding")

#: What embedding models are called. They refuse to chat, and no engine's list says so.
_EMBEDDING = re.compile(
    r"embed|(^|[/_-])(bge|gte|e5|minilm|sentence|arctic)([._-]|$)|all-minilm", re.IGNORECASE
)

#: What llama.cpp calls its abilities, and Ollama in its own API.
_CAPABILITIES = {
    "completion": ("chat", "completion"),
    "embedding": ("embedding",),
    "embeddings": ("embedding",),
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A model in an engine's list. ``context`` is in tokens, None where it is not told."""

    id: str
    kinds: tuple[str, ...]
    context: int | None = None
    dialect: str = ""


def read_list(status: int, content_type: str, body: bytes) -> list[Listed]:
    """Read the answer to ``GET /v1/models``.

    Raises :class:`~blip.errors.Unavailable` saying what is wrong with it, in words that make sense
    behind "the engine".
    """
    if status != 200:
        raise Unavailable(f"answers {status} to GET /models{_said(body)}")
    try:
        answer = json.loads(body)
    except ValueError:
        raise Unavailable(
            f"answers GET /models with {content_type or 'no type'}, not JSON"
        ) from None
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) and not (isinstance(answer, dict) and "data" in answer):
        raise Unavailable('answers GET /models with JSON that has no "data"')
    abilities = _abilities(answer)
    found: dict[str, Listed] = {}
    for row in rows or []:
        id = row.get("id") if isinstance(row, dict) else None
        if isinstance(id, str) and id:
            found.setdefault(id, _listed(id, row, abilities.get(id)))
    return list(found.values())


def _listed(id: str, row: Mapping[str, Any], abilities: tuple[str, ...] | None) -> Listed:
    dialect = DIALECTS.get(str(row.get("owned_by")).lower(), "")
    kinds: tuple[str, ...] | None = abilities
    if isinstance(row.get("kinds"), list):  # a blip gateway knows; kinds we cannot pass on are left
        kinds = tuple(kind for kind in KINDS if kind in row["kinds"])
    if kinds is None:
        kinds = ("embedding",) if _EMBEDDING.search(id) else ("chat", "completion")
    meta = row.get("meta")
    served = meta.get("n_ctx") if isinstance(meta, dict) else None
    context = next(
        (
            size
            for size in (row.get("max_model_len"), row.get("context"), served)
            if isinstance(size, int) and not isinstance(size, bool) and size > 0
        ),
        None,
    )
    return Listed(id, kinds, context, dialect)


def _abilities(answer: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Read llama.cpp's second list, the one in Ollama's shape."""
    found: dict[str, tuple[str, ...]] = {}
    rows = answer.get("models")
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not isinstance(row.get("capabilities"), list):
            continue
        kinds = [kind for each in row["capabilities"] for kind in _CAPABILITIES.get(str(each), ())]
        for key in ("name", "model"):
            if kinds and isinstance(row.get(key), str):
                found[row[key]] = tuple(dict.fromkeys(kinds))
    return found


def _said(body: bytes) -> str:
    """Quote the engine's own message, if its answer has one."""
    said = message_of(body)
    return f": {said}" if said else ""
