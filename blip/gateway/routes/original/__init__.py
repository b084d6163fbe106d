"""The faces of BitingLip, whose documented requests are answered as its documents say.

One module a face. Its errors, and what is around every result, are in :mod:`.dialect`.
"""

from __future__ import annotations

from blip.gateway.routes.original import captions, embeddings, images, speech, text

OPERATIONS = (
    *text.OPERATIONS,
    *images.OPERATIONS,
    *speech.OPERATIONS,
    *captions.OPERATIONS,
    *embeddings.OPERATIONS,
)

__all__ = ["OPERATIONS"]
