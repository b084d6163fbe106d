"""Calls of functions in an answer, as its text grows."""

from __future__ import annotations

from blip.kinds.tools import CallPiece
from blip_node.runtimes.decoding.constraint import Constraint
from blip_node.runtimes.tool_formats import ToolFormat


class ToolStream:
    """Tells text from calls, token by token.

    As soon as a call begins the ``constraint`` holds, so whatever follows is a call that the
    request allows. Text that might be the beginning of one, and space before it, is held back.
    What cannot become a call, because its first token went on otherwise, stays text.
    """

    def __init__(self, form: ToolFormat, constraint: Constraint) -> None:
        self._form = form
        self._constraint = constraint
        self._arguments = Arguments()
        #: Tokens and their text that may belong to a call's beginning.
        self._held: list[tuple[int, str]] = []
        #: Text of calls that was not read yet; None while the answer is text.
        self._written: str | None = None
        #: Whether that is behind the head of a call.
        self._inside = False
        #: Whether a call may still begin.
        self._looking = True
        self.calls = 0

    def push(self, token: int, text: str) -> tuple[str, list[CallPiece]]:
        """Take the next token and its text; return what of it is text, and what is new in calls."""
        if self._written is not None:
            self._written += text
            return "", self._read()
        if not self._looking:
            return text, []
        self._held.append((token, text))
        held = "".join(text for _, text in self._held)
        at, begun = self._find(held)
        if not begun:
            self._drop(at)
            return held[:at], []
        self._drop(at)
        tokens = [token for token, _ in self._held]
        self._held = []
        if not self._constraint.begin(tokens):
            self._looking = bool(self._form.marker)
            return held, []
        self._written = held[at:].removeprefix(self._form.marker)
        return held[:at].rstrip(), self._read()

    def flush(self) -> str:
        """Return the text that was held back, once no more will come."""
        held, self._held = "".join(text for _, text in self._held), []
        if self._written is not None and not self.calls:
            held, self._written = self._written, ""  # an answer that only began like a call
        return held

    def _find(self, held: str) -> tuple[int, bool]:
        """Return where a call begins, True; or where one might begin, False."""
        marker = self._form.marker
        if not marker:
            bare = held.lstrip()
            start = self._form.before
            self._looking = bare.startswith(start) or start.startswith(bare)
            return (0 if self._looking else len(held)), bare.startswith(start)
        if (at := held.find(marker)) >= 0:
            return at, True
        most = min(len(marker) - 1, len(held))
        size = next((n for n in range(most, 0, -1) if held.endswith(marker[:n])), 0)
        return len(held[: len(held) - size].rstrip()), False

    def _drop(self, count: int) -> None:
        """Forget the first characters of what is held, and the tokens that end with them."""
        while self._held:
            token, text = self._held[0]
            if len(text) > count:
                self._held[0] = (token, text[count:])
                return
            count -= len(text)
            del self._held[0]

    def _read(self) -> list[CallPiece]:
        """Read what of the calls was not read yet."""
        pieces: list[CallPiece] = []
        while self._written:
            if self._inside:
                text, ended = self._arguments.push(self._written)
                pieces.append(CallPiece(self.calls - 1, "", text))
                self._written = self._written[len(text) :]
                self._inside = not ended
            elif head := self._form.found.search(self._written):
                pieces.append(CallPiece(self.calls, head[1], ""))
                self.calls += 1
                self._written = self._written[head.end() :]
                self._inside, self._arguments = True, Arguments()
            else:
                break
        return pieces


class Arguments:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return what of it belongs to the object, and whether that ended."""
        for at, char in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = char == "\\"
                self._quoted = char != '"'
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    return text[:at], True
        return text, False
