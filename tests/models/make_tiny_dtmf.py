"""Make ``tiny-dtmf``: a Wav2Vec2 with a CTC head that writes down telephone key tones.

``python -m tests.models.make_tiny_dtmf FOLDER``; about three minutes on a CPU. Keys are pressed for
different times, at different loudness, with and without longer pauses, over different noise.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from tests.models.tones import BETWEEN, KEYS, PRESSED, RATE, tones

#: The keys of a telephone; A to D are the military's.
ALPHABET = "0123456789*#"

STEPS = 1200
BATCH = 16
RATE_OF_LEARNING = 3e-3
WARM_UP = 30

#: Strings that the result must write down: clean ones all, noisy ones 98 of 100.
CHECKS = 200


def noisy(rng: numpy.random.Generator, keys: str) -> Any:
    """Return samples of keys as somebody might press them."""
    pieces = [numpy.zeros(int(RATE * rng.uniform(0.02, 0.3)))]
    loud = 0.3 * 10 ** rng.uniform(-0.6, 0.2)
    turn = rng.integers(2)  # whether waves begin anywhere, or all at zero
    for key in keys:
        time = numpy.arange(int(RATE * PRESSED * rng.uniform(0.8, 1.3))) / RATE
        pieces.append(
            loud
            * sum(
                (
                    numpy.sin(2 * math.pi * hertz * time + turn * rng.uniform(0, 6))
                    for hertz in KEYS[key]
                ),
                start=numpy.zeros(1),
            )
        )
        rest = BETWEEN * rng.uniform(0.7, 1.5) if rng.random() < 0.6 else rng.uniform(0.1, 2)
        pieces.append(numpy.zeros(int(RATE * rest)))
    samples = numpy.concatenate(pieces)
    noise = rng.standard_normal(len(samples)) * 10 ** rng.uniform(-3, -1.9)
    return (samples + noise).astype("float32")


def make_processor() -> Any:
    """Return a processor with a token for each key."""
    words = ["<pad>", "<unk>", "|", *ALPHABET]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps({word: index for index, word in enumerate(words)}))
        tokenizer = Wav2Vec2CTCTokenizer(
            str(file),
            pad_token="<pad>",
            unk_token="<unk>",
            word_delimiter_token="|",
            bos_token=None,
            eos_token=None,
        )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return Wav2Vec2Processor(extractor, tokenizer)


def make_model(size: int) -> Any:
    """Return an untrained model: a frame each 20 ms, from 10 ms of sound and its neighbours."""
    off = "hidden activation feat_proj attention final".split()  # noqa: SIM905
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=size,
            pad_token_id=0,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=128,
            conv_dim=(64, 64),
            conv_kernel=(400, 3),
            conv_stride=(160, 2),
            num_feat_extract_layers=2,
            feat_extract_norm="layer",
            conv_bias=True,
            num_conv_pos_embeddings=9,
            num_conv_pos_embedding_groups=4,
            do_stable_layer_norm=True,
            mask_time_prob=0.0,
            layerdrop=0.0,
            ctc_zero_infinity=True,
            ctc_loss_reduction="mean",
            **{f"{name}_dropout": 0.0 for name in off},
        )
    )


def train(model: Any, processor: Any) -> None:
    """Fit the model."""
    rng = numpy.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE_OF_LEARNING)
    ids = processor.tokenizer.get_vocab()
    for step in range(STEPS):
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = RATE_OF_LEARNING * min(1, (step + 1) / WARM_UP) * fall
        strings = ["".join(rng.choice(list(ALPHABET), rng.integers(1, 6))) for _ in range(BATCH)]
        inputs = processor(
            [noisy(rng, keys) for keys in strings],
            sampling_rate=RATE,
            padding=True,
            return_tensors="pt",
        )
        labels = torch.full((BATCH, 5), -100)
        for row, keys in enumerate(strings):
            labels[row, : len(keys)] = torch.tensor([ids[key] for key in keys])
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(step, f"{loss.item():.3f}", flush=True)


def written(model: Any, processor: Any, samples: Any) -> str:
    """Return what the model writes down."""
    inputs = processor(samples, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        ids = model(**inputs).logits[0].argmax(-1)
    return str(processor.decode(ids))


def spaced(keys: str) -> str:
    """Return keys with a second's rest in the middle."""
    return f"{keys[: len(keys) // 2]} {keys[len(keys) // 2 :]}"


def main(folder: str) -> None:
    """Train, check, save."""
    torch.manual_seed(0)
    processor = make_processor()
    model = make_model(len(processor.tokenizer))
    model.train()
    train(model, processor)
    model.eval()
    rng = numpy.random.default_rng(1)
    strings = ["".join(rng.choice(list(ALPHABET), rng.integers(2, 9))) for _ in range(CHECKS)]
    rough = [keys for keys in strings if written(model, processor, noisy(rng, keys)) != keys]
    clean = [keys for keys in strings if written(model, processor, tones(spaced(keys))) != keys]
    print(f"{len(rough)} of {CHECKS} noisy ones wrong, {len(clean)} clean ones", clean[:5])
    if clean or len(rough) > CHECKS // 50:
        raise SystemExit("too many mistakes")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
