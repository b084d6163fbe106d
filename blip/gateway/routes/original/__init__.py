"""The faces of BitingLip, whose documented requests are answered as its documents say.

One module a face. Its errors, and what is around every result, are in :mod:`.dialect`. Its README
asks below ``/api/v1``, its API reference below ``/v1``.
"""

from __future__ import annotations

from dataclasses import replace

from blip.gateway.routes.original import captions, embeddings, images, speech, text

_FACES = (
    *text.OPERATIONS,
    *images.OPERATIONS,
    *speech.OPERATIONS,
    *captions.OPERATIONS,
    *embeddings.OPERATIONS,
)

OPERATIONS = (
    *_FACES,
    *(replace(face, path=face.path.removeprefix("/api")) for face in _FACES),
)

__all__ = ["OPERATIONS"]
