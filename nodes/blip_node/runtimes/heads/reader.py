"""From texts and pairs of texts to what a model reads, cut to fit if that is asked for."""

from __future__ import annotations

from typing import Any, Literal

from tokenizers import Encoding

from blip.errors import ContextTooLong, InvalidRequest
from blip_node.runtimes.decoding.vocabulary import Vocabulary

#: Cutting a text may move a token's border, so what was cut to fit is read again; each turn cuts at
#: least one token more, and the second nearly always fits.
_CUTS = 8


class Row:
    """One text or pair to compute. ``wish`` is whatever its head wants to remember with it."""

    __slots__ = ("encoding", "head", "wish")

    def __init__(self, head: Any, encoding: Encoding, wish: Any = None) -> None:
        self.head = head
        self.encoding = encoding
        self.wish = wish

    def __len__(self) -> int:
        return len(self.encoding.ids)


class Reader:
    """A tokenizer and the most tokens that its model takes. Threads may share it."""

    def __init__(self, tokenizer: Any, size: int, context: int) -> None:
        self.vocabulary = Vocabulary(tokenizer.backend_tokenizer, size)
        self.context = context
        self.mask: str | None = tokenizer.mask_token
        self.mask_id: int | None = tokenizer.mask_token_id

    def read(
        self,
        index: int,
        text: str,
        pair: str | None = None,
        *,
        truncate: bool = False,
        cut: Literal["text", "pair"] = "text",
        field: str = "texts",
    ) -> tuple[Encoding, bool]:
        """Return what a text, or a pair, is to the model, and whether it was cut.

        ``index`` and ``field`` are how errors name it; ``cut`` says which of a pair loses its end.
        Raises :class:`~blip.errors.ContextTooLong` for what is too long and may not be cut, or
        cannot, and ``InvalidRequest`` for a text in which the model knows nothing.
        """
        encoding = self._encode(text, pair)
        whole = len(encoding.ids)
        if whole == 0:
            raise InvalidRequest(
                f"input {index} has no token that the model knows", param=f"{field}.{index}"
            )
        if whole <= self.context:
            return encoding, False
        for _ in range(_CUTS if truncate else 0):
            excess = len(encoding.ids) - self.context
            if cut == "text" or pair is None:
                text = self.shortened(text, excess)
                left = text
            else:
                pair = left = self.shortened(pair, excess)
            if not left:
                break
            encoding = self._encode(text, pair)
            if len(encoding.ids) <= self.context:
                return encoding, True
        raise ContextTooLong(
            f"input {index} has {whole} tokens; the model takes {self.context}",
            hint="Even without its end it is too long: shorten the other text."
            if truncate
            else "Split the text, or set 'truncate': true to have its end cut off.",
            param=f"{field}.{index}",
            details={"prompt_tokens": whole, "limit": self.context, "input": index},
        )

    def shortened(self, text: str, tokens: int) -> str:
        """Return a text without its last tokens; "" if that leaves none."""
        offsets = self._encode(text, special=False).offsets
        kept = len(offsets) - tokens
        return text[: offsets[kept - 1][1]] if kept > 0 else ""

    def first_tokens(self, text: str, tokens: int) -> str:
        """Return the beginning of a text, at most so many tokens."""
        count = len(self._encode(text, special=False).ids)
        return text if count <= tokens else self.shortened(text, count - tokens)

    def windows(self, text: str, size: int, stride: int) -> list[tuple[int, str]]:
        """Cut a text into windows of at most ``size`` tokens that share ``stride`` of them.

        Each comes with the character at which it begins.
        """
        offsets = self._encode(text, special=False).offsets
        if len(offsets) <= size:
            return [(0, text)]
        found = []
        for begin in range(0, len(offsets) - stride, size - stride):
            end = min(begin + size, len(offsets))
            start = offsets[begin][0]
            found.append((start, text[start : offsets[end - 1][1]]))
        return found

    def length(self, text: str, pair: str | None = None) -> int:
        """Return how many tokens a text, or a pair, has, the model's own markers included."""
        return len(self._encode(text, pair).ids)

    def _encode(self, text: str, pair: str | None = None, *, special: bool = True) -> Encoding:
        found = self.vocabulary.backend.encode(text, pair, add_special_tokens=special)
        self.vocabulary.check_text(found.ids)
        return found
