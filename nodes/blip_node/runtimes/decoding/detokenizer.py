"""Text from tokens as they come, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers.decoders import DecodeStream

from blip_node.runtimes.decoding.vocabulary import Vocabulary

#: A character is at most four bytes, so valid text is never held back this long; a model that
#: emits broken bytes without end would be, and at quadratic cost.
MAX_HELD = 32


class Detokenizer:
    """Incremental decoding around ``tokenizers``' :class:`DecodeStream`.

    Special tokens are not text, but for those in ``shown``.

    ``before`` are the tokens in front of the first one: some tokenizers write the space between
    two words only if there is a word before. The text depends on the tokens alone, so a second
    detokenizer that is fed the same ones holds back the same.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        before: Sequence[int] = (),
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._before = list(before)
        self._shown = shown or {}
        self._held: list[int] = []
        self._stream = self._new_stream()

    def push(self, token: int) -> str:
        """Return the text that this token completes, often all of its own, sometimes none."""
        if token in self._vocabulary.special:
            text = self._shown.get(token)
            return "" if text is None else self.flush() + text
        self._held.append(token)
        try:
            text = self._stream.step(self._vocabulary.backend, token)
        except Exception:
            # "Invalid prefix encountered", a plain Exception: broken bytes decoded differently
            # once their successors were there
            return self.flush()
        if text is None:
            return self.flush() if len(self._held) >= MAX_HELD else ""
        self._before, self._held = [token], []
        return str(text)

    def flush(self) -> str:
        """Return what is held back, with U+FFFD for characters that stayed incomplete."""
        if not self._held:
            return ""
        decode = self._vocabulary.decode
        before, whole = decode(self._before), decode(self._before + self._held)
        text = whole.removeprefix(before) if whole.startswith(before) else decode(self._held)
        self._before, self._held = self._held[-1:], []
        self._stream = self._new_stream()
        return text

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=self._before, skip_special_tokens=True)
