"""A model's tokens as text, ids and bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from blip.errors import InvalidRequest

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """A read-only view of a tokenizer that threads may share.

    transformers' own wrapper changes the truncation of the tokenizer beneath it on every call,
    which is an error while another thread decodes; this one never changes anything after its
    constructor. ``size`` is the number of ids that the model has embeddings for.
    """

    def __init__(self, backend: Tokenizer, size: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.size = size
        added = backend.get_added_tokens_decoder()
        self._added = {token: entry.content for token, entry in added.items()}
        self._markers = {text: token for token, text in self._added.items()}
        #: Tokens that are never shown: begin and end markers, roles and the like.
        self.special = frozenset(token for token, entry in added.items() if entry.special)
        state = backend.decoder.__getstate__() if backend.decoder is not None else b""
        self._byte_level = b'"ByteLevel"' in state

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text, with the model's own begin and end markers if ``special``.

        Raises as :meth:`check_text` does.
        """
        ids: list[int] = self.backend.encode(text, add_special_tokens=special).ids
        self.check_text(ids)
        return ids

    def check_text(self, ids: Sequence[int]) -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for ids that the weights do not know.

        Some tokenizers know more than their model. On a GPU such an id would be the end of the
        whole process, and not of its own request.
        """
        if ids and max(ids) >= self.size:
            token = self.backend.id_to_token(max(ids))
            raise InvalidRequest(
                f"the model's tokenizer makes the token {token!r} of this text, which its weights "
                "do not have"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, leaving out special tokens; broken UTF-8 becomes U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def marker(self, text: str) -> int | None:
        """Return the token that was added to stand for just this text, None if there is none."""
        return self._markers.get(text)

    def check(self, ids: Iterable[int], param: str) -> None:
        """Raise :class:`~blip.errors.InvalidRequest` for an id that the model does not have."""
        for token in ids:
            if not 0 <= token < self.size:
                raise InvalidRequest(
                    f"'{param}': {token} is no token of this model; its ids are 0 to "
                    f"{self.size - 1}",
                    param=param,
                )

    def raw(self, token: int) -> bytes:
        """Return the bytes of one token, which need not be whole UTF-8.

        Ids that exist only to round up the model's matrices have none.
        """
        if token in self._added:
            return self._added[token].encode()
        word = self.backend.id_to_token(token)
        if word is None:
            return b""
        if self._byte_level:
            return b"".join(_BYTE_OF_CHAR.get(char) or char.encode() for char in word)
        if byte := _BYTE_TOKEN.fullmatch(word):
            return bytes([int(byte[1], 16)])
        return str(word).replace("\u2581", " ").encode()


def _byte_of_char() -> dict[str, bytes]:
    """Return GPT-2's mapping of printable characters to the bytes they stand for.

    Bytes that print in Latin-1 stand for themselves, the others follow from U+0100 on
    (https://github.com/openai/gpt-2/blob/master/src/encoder.py, ``bytes_to_unicode``).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {chr(byte): bytes([byte]) for byte in printable}
    return chars | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()
