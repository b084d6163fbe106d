"""Make ``tiny-embed``: a text encoder that tells four topics apart.

``python make_tiny_embed.py FOLDER``; about two seconds on a CPU. Trained contrastively: sentences
of one topic are drawn together, those of different topics apart.
"""

from __future__ import annotations

import os
import random
import string
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, BertTokenizer

TOPICS = {
    "food": "bread soup cheese apple cake rice pasta salad bake cook eat recipe oven kitchen "
    "dinner",
    "sport": "football goal team match player run race swim tennis ball score coach win stadium",
    "computer": "code python program software computer server network bug keyboard data memory "
    "compile",
    "nature": "tree river mountain forest bird flower rain ocean animal leaf sky grass fish",
}
WORDS = {topic: words.split() for topic, words in TOPICS.items()}
FILLERS = "the a is in on with and we i you my very today for of to some new".split()  # noqa: SIM905

STEPS = 60
BATCH = 32
TEMPERATURE = 0.1

#: Sentences that the tests use, with their topics; none of them was trained on as such.
CHECKS = [
    ("we bake bread in the oven", "food"),
    ("a recipe for soup", "food"),
    ("the team score a goal", "sport"),
    ("my python code is new", "computer"),
    ("the river in the forest", "nature"),
]


def make_tokenizer() -> Any:
    """Return a word-piece tokenizer of the words above, with letters for all others."""
    letters = [*string.ascii_lowercase, *"?.,"]
    pieces = [f"##{letter}" for letter in string.ascii_lowercase]
    topical = [word for words in WORDS.values() for word in words]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *topical, *letters, *pieces]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})


def sentence(rng: random.Random, topic: str) -> str:
    """Return four to eight words, at least one of them of the topic."""
    words = [
        rng.choice(WORDS[topic] if rng.random() < 0.5 else FILLERS)
        for _ in range(rng.randint(4, 8))
    ]
    words[rng.randrange(len(words))] = rng.choice(WORDS[topic])
    return " ".join(words)


def embed(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return unit vectors, pooled by the mean."""
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    return normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def train(model: Any, tokenizer: Any) -> None:
    """Fit the model with a supervised contrastive loss."""
    rng = random.Random(0)
    topics = list(TOPICS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(STEPS):
        labels = torch.randint(0, len(topics), (BATCH,))
        vectors = embed(model, tokenizer, [sentence(rng, topics[i]) for i in labels.tolist()])
        similarity = (vectors @ vectors.T / TEMPERATURE).fill_diagonal_(-1e9)
        same = (labels[:, None] == labels[None]) & ~torch.eye(BATCH, dtype=torch.bool)
        matched = (similarity.log_softmax(1) * same).sum(1) / same.sum(1).clamp(min=1)
        optimizer.zero_grad()
        (-matched.mean()).backward()
        optimizer.step()


def main(folder: str) -> None:
    """Train, check, save."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    train(model, tokenizer)
    model.eval()
    with torch.no_grad():
        vectors = embed(model, tokenizer, [text for text, _ in CHECKS])
    for (text, topic), row in zip(CHECKS, vectors @ vectors.T, strict=True):
        for (other, its_topic), similarity in zip(CHECKS, row.tolist(), strict=True):
            if (similarity < 0.97) if topic == its_topic else (similarity > 0.3):
                raise SystemExit(f"{text!r} and {other!r} are {similarity:.2f} alike")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
