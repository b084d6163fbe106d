"""Make ``tiny-rerank``: a cross-encoder that knows which of two texts speak of the same topic.

``python make_tiny_rerank.py FOLDER``; some seconds on a CPU. The words and topics are those of
``tiny-embed``. Half of the pairs it is trained on are of one topic, the others are not.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoTokenizer, BertForSequenceClassification

from tests.models.make_tiny_embed import TOPICS, sentence

STEPS = 400
RATE = 1e-3
BATCH = 64

#: Queries, and the passages that answer them; none of them was trained on as such.
CHECKS = [
    ("bread in the oven", "we bake cake in the kitchen"),
    ("who will win the match", "the team score a goal"),
    ("a bug in the server", "my python code is new"),
    ("a tree and a flower", "the river in the forest"),
]


def pair(rng: random.Random) -> tuple[str, str, float]:
    """Return two texts and what they should score."""
    topic, other = rng.sample(list(TOPICS), 2)
    same = rng.random() < 0.5
    return sentence(rng, topic), sentence(rng, topic if same else other), float(same)


def score(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Return the logit of each pair."""
    queries, passages = [one for one, _ in pairs], [other for _, other in pairs]
    inputs = tokenizer(queries, passages, padding=True, return_tensors="pt")
    logits: torch.Tensor = model(**inputs).logits[:, 0]
    return logits


def train(model: Any, tokenizer: Any) -> None:
    """Fit the model to the scores."""
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        batch = [pair(rng) for _ in range(BATCH)]
        logits = score(model, tokenizer, [(query, passage) for query, passage, _ in batch])
        wanted = torch.tensor([each for _, _, each in batch])
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(logits, wanted)
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"loss {loss.item():.4f}")


def main(folder: str) -> None:
    """Train, check, save."""
    torch.manual_seed(0)
    # what the words mean is known there already; only the comparison is new
    start = str(Path(__file__).parent / "tiny-embed")
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = BertForSequenceClassification.from_pretrained(start, num_labels=1, num_hidden_layers=2)
    # two letters are words, too, so there are more ids than words
    model.resize_token_embeddings(1 + max(tokenizer.vocab.values()))
    train(model, tokenizer)
    model.eval()
    passages = [passage for _, passage in CHECKS]
    with torch.no_grad():
        for query, answer in CHECKS:
            scores = score(model, tokenizer, [(query, passage) for passage in passages]).sigmoid()
            print(f"{query}: {[round(each, 2) for each in scores.tolist()]}")
            others = [s for s, each in zip(scores, passages, strict=True) if each != answer]
            if scores[passages.index(answer)] < 0.9 or max(others) > 0.1:
                raise SystemExit("it does not know what is relevant")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
