"""``rerank``: a query and documents in, one relevance a document out, as raw float32."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from blip.kinds.base import Kind, TaskInput
from blip.kinds.text import CHARS_PER_TOKEN

#: Documents a request; what search hands to a reranker is some hundreds.
MAX_DOCUMENTS = 2048


class RerankInput(TaskInput):
    """What to score.

    Scores are probabilities, or with ``raw`` what the model's head computes: the logits. A pair
    that is longer than the model takes is an error, or with ``truncate`` loses the document's end;
    ``document_tokens`` cuts every document to so many tokens. Where a request was cut into several
    tasks ``first`` is the number of this one's first document, for its errors.
    """

    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[list[str], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    raw: bool = False
    truncate: bool = False
    document_tokens: Annotated[int, Field(ge=1)] | None = None
    first: Annotated[int, Field(ge=0)] = 0


def _units(value: RerankInput) -> float:
    """Documents, and tokens: the query is read anew with each document."""
    chars = sum(map(len, value.documents)) + len(value.query) * len(value.documents)
    return len(value.documents) + chars / CHARS_PER_TOKEN


#: The DONE payload is a little-endian float32 for each document, in their order.
RERANK = Kind("rerank", RerankInput, _units)
