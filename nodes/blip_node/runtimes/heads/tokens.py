"""Heads with numbers for every token: entities, masked words, features."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from blip.errors import InvalidRequest
from blip.kinds.pipelines import (
    FeatureExtractionInput,
    FillMaskInput,
    TokenClassificationInput,
    results_to_wire,
)
from blip_node.runtimes.heads.engine import Read
from blip_node.runtimes.heads.reader import Reader, Row
from blip_node.runtimes.heads.sequences import read_texts

#: Masks of one text that are filled: each one is a distribution over the whole vocabulary.
MAX_MASKS = 64

#: How the families write a mask; a text with any of them is understood by every model.
_MASKS = re.compile(r"\[MASK\]|<mask>")


class Entities:
    """``token-classification``: transformers' own pipeline makes entities of the tokens' labels."""

    def __init__(self, reader: Reader, model: Any, tokenizer: Any) -> None:
        from transformers import TokenClassificationPipeline

        self._reader = reader
        self._pipeline = TokenClassificationPipeline(model=model, tokenizer=tokenizer)

    def read(self, value: TokenClassificationInput) -> Read:
        """Read each text."""
        return read_texts(self, self._reader, value.texts, value.first, truncate=value.truncate)

    def pick(self, output: Any, at: int, row: Row) -> Any:
        """Return the logits of each token, one a label."""
        return output.logits[at, : len(row)]

    def write(self, value: TokenClassificationInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return the entities of each text."""
        return results_to_wire(
            [
                self._entities(value, text, row, logits)
                for text, row, logits in zip(value.texts, rows, picked, strict=True)
            ]
        )

    def _entities(
        self, value: TokenClassificationInput, text: str, row: Row, logits: Any
    ) -> list[Any]:
        from transformers.pipelines.token_classification import AggregationStrategy

        encoding = row.encoding
        output = {
            "logits": torch.from_numpy(logits)[None],
            "sentence": text,
            "input_ids": torch.tensor([encoding.ids]),
            "offset_mapping": torch.tensor([encoding.offsets]),
            "special_tokens_mask": torch.tensor([encoding.special_tokens_mask]),
            "is_last": True,
        }
        found = self._pipeline.postprocess(
            [output], AggregationStrategy(value.aggregation), value.ignore_labels
        )
        return [
            (
                str(each.get("entity_group", each.get("entity"))),
                float(each["score"]),
                str(each["word"]),
                int(each["start"]),
                int(each["end"]),
            )
            for each in found
        ]


class Wish(NamedTuple):
    """Where the masks of a row are, how many tokens are wanted for each, and which may be."""

    places: list[int]
    most: int
    targets: list[int]


class Masks:
    """``fill-mask``: which tokens may stand where a mask is."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, value: FillMaskInput) -> Read:
        """Read each text and find its masks."""
        reader = self._reader
        if reader.mask is None:
            raise InvalidRequest("this model's tokenizer knows no mask", param="model")
        targets = [self._token(target) for target in value.targets or ()]
        rows, cut = [], 0
        for index, text in enumerate(value.texts, value.first):
            encoding, shorter = reader.read(
                index, _MASKS.sub(lambda _: str(reader.mask), text), truncate=value.truncate
            )
            places = [at for at, token in enumerate(encoding.ids) if token == reader.mask_id]
            if not places or len(places) > MAX_MASKS:
                raise InvalidRequest(
                    f"input {index} has {len(places)} masks; one to {MAX_MASKS} are what can be "
                    "filled",
                    hint="Write [MASK] where a word is to be found.",
                    param=f"texts.{index}",
                )
            cut += shorter
            rows.append(Row(self, encoding, Wish(places, value.top_k, targets)))
        return Read(rows, cut)

    def _token(self, target: str) -> int:
        """Return the one token that a target is, at a text's beginning or within it."""
        for written in (target, f" {target}"):
            ids = self._reader.vocabulary.encode(written, special=False)
            if len(ids) == 1:
                return ids[0]
        raise InvalidRequest(
            f"the target '{target}' is not one token of this model, so no mask can stand for it",
            param="targets",
        )

    def pick(self, output: Any, at: int, row: Row) -> Any:
        """Return [2, masks, tokens]: the best tokens' ids and their probabilities."""
        places, most, targets = row.wish
        # in double precision an id stays itself beside the probabilities
        chances = output.logits[at, places].double().softmax(-1)
        if targets:
            chosen = torch.tensor(targets, device=chances.device)
            values, order = chances[:, chosen].topk(min(most, len(targets)))
            return torch.stack([chosen[order].double(), values])
        values, order = chances.topk(min(most, chances.shape[-1]))
        return torch.stack([order.double(), values])

    def write(self, value: FillMaskInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return what each mask may stand for, and the text with it in place."""
        backend = self._reader.vocabulary.backend
        results = []
        for row, (tokens, chances) in zip(rows, picked, strict=True):
            places = row.wish.places
            masks = []
            for place, ids, scores in zip(places, tokens, chances, strict=True):
                found = []
                for token, score in zip(ids.astype(int).tolist(), scores.tolist(), strict=True):
                    filled = list(row.encoding.ids)
                    filled[place] = token
                    # with other masks left the markers must stay, or these would go with them
                    text = backend.decode(filled, skip_special_tokens=len(places) == 1)
                    word = backend.decode([token], skip_special_tokens=False)
                    found.append((token, word, score, text))
                masks.append(found)
            results.append(masks)
        return results_to_wire(results)


class Features:
    """``feature-extraction``: the last hidden state of every token."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, value: FeatureExtractionInput) -> Read:
        """Read each text."""
        return read_texts(self, self._reader, value.texts, value.first, truncate=value.truncate)

    def pick(self, output: Any, at: int, row: Row) -> Any:
        """Return [tokens, dimensions]."""
        return output.last_hidden_state[at, : len(row)]

    def write(self, value: FeatureExtractionInput, rows: list[Row], picked: list[Any]) -> bytes:
        """Return the rows of each text."""
        return results_to_wire([(len(each), each.astype("<f4").tobytes()) for each in picked])
