"""Heads with a few numbers a text: relevance, labels, and whether one text follows from another."""

from __future__ import annotations

from typing import Any

import numpy

from blip.errors import InvalidRequest
from blip.kinds.pipelines import TextClassificationInput, ZeroShotInput, results_to_wire
from blip.kinds.rerank import RerankInput
from blip_node.runtimes.heads.engine import Read
from blip_node.runtimes.heads.reader import Reader, Row


class _OnePerText:
    """A row of logits for each text."""

    def __init__(self, reader: Reader, config: Any) -> None:
        self._reader = reader
        self._config = config

    def pick(self, output: Any, at: int, row: Row) -> Any:
        """Return the logits, one a label."""
        return output.logits[at]


class Relevance(_OnePerText):
    """``rerank``: query and document are read together by a model with one label."""

    def read(self, value: RerankInput) -> Read:
        """Pair the query with each document."""
        rows, cut = [], 0
        for index, document in enumerate(value.documents, value.first):
            kept = document
            if value.document_tokens is not None:
                kept = self._reader.first_tokens(document, value.document_tokens)
            encoding, shorter = self._reader.read(
                index, value.query, kept, truncate=value.truncate, cut="pair", field="documents"
            )
            cut += shorter or kept != document
            rows.append(Row(self, encoding))
        return Read(rows, cut)

    def write(self, value: RerankInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return a float32 for each document: the logit, or the probability that it stands for."""
        logits = numpy.concatenate(picked)
        scores = logits if value.raw else sigmoid(logits)
        payload: bytes = scores.astype("<f4").tobytes()
        return payload


class Labels(_OnePerText):
    """``text-classification``: how probable each of the model's labels is."""

    def read(self, value: TextClassificationInput) -> Read:
        """Read each text."""
        return read_texts(self, self._reader, value.texts, value.first, truncate=value.truncate)

    def write(self, value: TextClassificationInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return the best labels of each text."""
        activation = value.activation or self._activation()
        results = []
        for logits in picked:
            scores = {"sigmoid": sigmoid, "softmax": softmax, "none": _same}[activation](logits)
            named = [(self._config.id2label[at], float(scores[at])) for at in best(scores)]
            results.append(named[: value.top_k])
        return results_to_wire(results)

    def _activation(self) -> str:
        """Return what the model was trained with, as transformers' pipeline finds it."""
        several = self._config.problem_type == "multi_label_classification"
        return "sigmoid" if several or self._config.num_labels == 1 else "softmax"


class Inference(_OnePerText):
    """``zero-shot-classification``: whether "this example is X" follows from the text."""

    def __init__(self, reader: Reader, config: Any) -> None:
        super().__init__(reader, config)
        names = {at: str(name).lower() for at, name in config.id2label.items()}
        self._entails = next(at for at, name in names.items() if name.startswith("entail"))
        # what the other end is called differs between models; transformers takes the far end
        self._refutes = next(
            (at for at, name in names.items() if name.startswith("contra")),
            max(names) if self._entails == 0 else 0,
        )

    def read(self, value: ZeroShotInput) -> Read:
        """Pair each text with a sentence for each candidate; a text that is too long is cut."""
        if "{}" not in value.template:
            raise InvalidRequest("'template' has no {} for the label", param="template")
        rows, cut = [], 0
        for index, text in enumerate(value.texts, value.first):
            shorter = False
            for candidate in value.candidates:
                sentence = value.template.replace("{}", candidate)
                encoding, once = self._reader.read(index, text, sentence, truncate=value.truncate)
                shorter |= once
                rows.append(Row(self, encoding))
            cut += shorter
        return Read(rows, cut)

    def write(self, value: ZeroShotInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return the candidates of each text, likeliest first."""
        count = len(value.candidates)
        logits = numpy.stack(picked).reshape(len(value.texts), count, -1)
        results = []
        for each in logits:
            if value.multi_label or count == 1:
                scores = softmax(each[:, [self._refutes, self._entails]])[:, 1]
            else:
                scores = softmax(each[:, self._entails])
            results.append([(value.candidates[at], float(scores[at])) for at in best(scores)])
        return results_to_wire(results)


def read_texts(head: Any, reader: Reader, texts: list[str], first: int, *, truncate: bool) -> Read:
    """Read texts one by one."""
    read = [reader.read(at, text, truncate=truncate) for at, text in enumerate(texts, first)]
    return Read([Row(head, encoding) for encoding, _ in read], sum(cut for _, cut in read))


def best(scores: Any) -> list[int]:
    """Return the places of scores, highest first; of equal ones the first."""
    order: list[int] = numpy.argsort(-scores, kind="stable").tolist()
    return order


def softmax(logits: Any) -> Any:
    """Return probabilities that sum up to one along the last axis."""
    powers = numpy.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: Any) -> Any:
    """Return a probability for each number; written so that none overflows."""
    small = numpy.exp(-numpy.abs(logits))
    return numpy.where(logits >= 0, 1, small) / (1 + small)


def _same(logits: Any) -> Any:
    return logits
