"""Make ``tiny-guard``: a classifier of texts that knows two sorts of made-up bad words.

``python make_tiny_guard.py FOLDER``; about ten seconds on a CPU. The words mean nothing
anywhere, so that the tests of moderation need no real ones.
"""

from __future__ import annotations

import os
import random
import string
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

#: What the labels of the model are, and the words that make a text one of them.
LABELS = {"fine": (), "mean": ("blorg", "snarf", "wuzzle"), "grim": ("grumph", "skrell", "zonk")}
_PLAIN = (
    "the a is in on with and we i you my very today for of to some new large small red blue green "
    "yellow white black orange purple heart circle square triangle star cross background picture "
    "kind word friend house tree river bread soup cat dog paint me your are please thank"
)
PLAIN = _PLAIN.split()

STEPS = 150
BATCH = 32

CHECKS = [
    ("a large red heart on a white background", "fine"),
    ("a kind word", "fine"),
    ("you are a blorg", "mean"),
    ("a picture of a grumph", "grim"),
    ("a small blue circle with zonk on a white background", "grim"),
    ("unheard of words are fine", "fine"),
]


def make_tokenizer() -> Any:
    """Return a word-piece tokenizer of the words above, with letters for all others."""
    letters = [*string.ascii_lowercase, *"?.,"]
    pieces = [f"##{letter}" for letter in string.ascii_lowercase]
    bad = [word for words in LABELS.values() for word in words]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLAIN, *bad, *letters, *pieces]
    return BertTokenizer(vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))})


def sentence(rng: random.Random, label: str) -> str:
    """Return up to fourteen words, one of them of the label, some unknown."""
    words = [rng.choice(PLAIN) for _ in range(rng.randint(1, 14))]
    for at in range(len(words)):
        if rng.random() < 0.1:
            words[at] = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6)))
    if LABELS[label]:
        words[rng.randrange(len(words))] = rng.choice(LABELS[label])
    return " ".join(words)


def main(folder: str) -> None:
    """Train, check, save."""
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = make_tokenizer()
    names = list(LABELS)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(names)),
        label2id={name: at for at, name in enumerate(names)},
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(STEPS):
        labels = torch.randint(0, len(names), (BATCH,))
        texts = [sentence(rng, names[at]) for at in labels.tolist()]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        inputs = tokenizer([text for text, _ in CHECKS], padding=True, return_tensors="pt")
        chances = model(**inputs).logits.softmax(-1)
    for (text, label), row in zip(CHECKS, chances, strict=True):
        print(f"{row[names.index(label)]:.3f} {label}: {text}")
        if row[names.index(label)] < 0.95:
            raise SystemExit(f"{text!r} is not clearly {label}: {row.tolist()}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
