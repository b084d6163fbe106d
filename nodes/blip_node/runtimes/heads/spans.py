"""``question-answering``: the part of a text that answers a question, as transformers 4 found it.

The model says of each token how likely an answer begins and ends there; an answer's score is the
product. transformers 5 has no pipeline for it any more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy
import torch
from tokenizers import Encoding

from blip.errors import ContextTooLong
from blip.kinds.pipelines import QuestionAnsweringInput, results_to_wire
from blip_node.runtimes.heads.engine import Read
from blip_node.runtimes.heads.reader import Reader, Row
from blip_node.runtimes.heads.sequences import softmax

#: Tokens of a window, question included: what the models were trained on, and the numbers of
#: possible answers grow with its square.
WINDOW = 384

#: Tokens of context that a window must have room for; a question that leaves less is too long.
LEAST_CONTEXT = 16


class _Window(NamedTuple):
    """Which question a row belongs to, and the character of its context where it begins."""

    question: int
    start: int


class Span(NamedTuple):
    """An answer: characters of the context. An empty one says that there is none."""

    score: float
    start: int
    end: int


class Spans:
    """The kind on one model."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, value: QuestionAnsweringInput) -> Read:
        """Pair each question with its context, or with windows of that."""
        reader = self._reader
        rows = []
        limit = min(WINDOW, reader.context)
        for at, (question, context) in enumerate(zip(value.questions, value.contexts, strict=True)):
            room = limit - reader.length(question, "")
            if room < LEAST_CONTEXT:
                raise ContextTooLong(
                    f"question {at + value.first} leaves room for {max(0, room)} tokens of its "
                    f"context, of {limit} that are read at once",
                    hint="Shorten the question.",
                    param=f"questions.{at + value.first}",
                )
            stride = min(value.stride, room // 2)
            for start, text in reader.windows(context, room, stride):
                # a window that begins within a word may have a token more than it had in the
                # whole; what it loses at its end is in the next one, too
                encoding, _ = reader.read(
                    at + value.first, question, text, truncate=True, cut="pair", field="contexts"
                )
                rows.append(Row(self, encoding, _Window(at, start)))
        return Read(rows)

    def pick(self, output: Any, at: int, row: Row) -> Any:
        """Return [2, tokens]: the logits of being an answer's first token, and its last."""
        return torch.stack([output.start_logits[at, : len(row)], output.end_logits[at, : len(row)]])

    def write(self, value: QuestionAnsweringInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return the best answers to each question, over all windows of its context."""
        found: list[list[Span]] = [[] for _ in value.questions]
        nothing = [1.0] * len(found)
        for row, logits in zip(rows, picked, strict=True):
            question, start = row.wish
            spans, none = spans_of(row.encoding, logits, value.top_k, value.max_answer_tokens)
            found[question] += [Span(s.score, s.start + start, s.end + start) for s in spans]
            nothing[question] = min(nothing[question], none)
        results = []
        for spans, none, context in zip(found, nothing, value.contexts, strict=True):
            if value.impossible:
                spans.append(Span(none, 0, 0))
            unique = {(span.start, span.end): span for span in sorted(spans)}
            chosen = sorted(unique.values(), reverse=True)[: value.top_k]
            results.append([(context[s.start : s.end], s.score, s.start, s.end) for s in chosen])
        return results_to_wire(results)


def spans_of(encoding: Encoding, logits: Any, most: int, longest: int) -> tuple[list[Span], float]:
    """Return the likeliest answers in a window, and how likely it has none.

    ``logits`` are [2, tokens]. An answer is at most ``longest`` tokens and whole words.
    """
    inside = numpy.array([sequence == 1 for sequence in encoding.sequence_ids])
    open_to = inside.copy()
    open_to[0] = True  # the first token stands for no answer
    starts, ends = softmax(numpy.where(open_to, logits.astype(numpy.float64), -1e4))
    none = float(starts[0] * ends[0])
    places = numpy.flatnonzero(inside)
    if not len(places):
        return [], none
    scores = numpy.triu(numpy.outer(starts[places], ends[places]))
    scores -= numpy.triu(scores, longest)
    flat = scores.ravel()
    top = numpy.argsort(-flat, kind="stable")[:most]
    found = []
    for at in top.tolist():
        if flat[at] > 0:
            first, last = divmod(at, len(places))
            begin, _ = _word(encoding, int(places[first]))
            _, end = _word(encoding, int(places[last]))
            found.append(Span(float(flat[at]), begin, end))
    return found, none


def _word(encoding: Encoding, token: int) -> tuple[int, int]:
    """Return the characters of the word that a token of the second text is part of."""
    word = encoding.word_ids[token]
    if word is None:
        begin, end = encoding.offsets[token]
        return begin, end
    chars = encoding.word_to_chars(word, 1)
    assert chars is not None
    return chars
