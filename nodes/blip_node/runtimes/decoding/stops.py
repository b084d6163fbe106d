"""Finding stop sequences in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Releases text as soon as it can no longer be part of a stop sequence, and not before.

    The match that ends first counts, the longest of those that end together. How the text is cut
    into pieces makes no difference. Time is linear in the text (Knuth, Morris, Pratt 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops if stop]
        #: How much of each stop sequence the text so far ends with.
        self._matched = [0] * len(self._stops)
        self._held = ""
        #: The stop sequence that was found.
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return the text to show, and whether a stop sequence is complete.

        After a match nothing more may be pushed: what follows it is not part of the answer.
        """
        if not self._stops:
            return text, False
        seen = self._held + text
        for at, char in enumerate(text, len(self._held) + 1):
            complete = 0
            for index, (stop, borders) in enumerate(self._stops):
                matched = self._matched[index]
                while matched and stop[matched] != char:
                    matched = borders[matched]
                matched += stop[matched] == char
                self._matched[index] = matched
                if matched == len(stop):
                    complete = max(complete, matched)
            if complete:
                self._held = ""
                self.found = seen[at - complete : at]
                return seen[: at - complete], True
        keep = len(seen) - max(self._matched)
        self._held = seen[keep:]
        return seen[:keep], False

    def flush(self) -> str:
        """Return what was held back, once no more text will come."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held


def _borders(stop: str) -> list[int]:
    """Return, for each length, the longest proper prefix that is also a suffix of that prefix."""
    borders = [0, 0]
    for char in stop[1:]:
        length = borders[-1]
        while length and stop[length] != char:
            length = borders[length]
        borders.append(length + (stop[length] == char))
    return borders
