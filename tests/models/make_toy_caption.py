"""Train ``toy-caption``: a BLIP that says what the pictures of ``toy-shapes`` show.

    python -m tests.models.make_toy_caption FOLDER

It learns from pictures drawn by ``make_toy_shapes.py``, new ones for every step: nothing is seen
twice. It takes about 8 minutes of CPU; ``--effort 0.01`` shows that everything works.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

from blip_node.runtimes.environment import WORKER_ENV

os.environ.update(WORKER_ENV)

import numpy
import torch
import transformers
from PIL import Image

from tests.models.make_toy_shapes import COLOURS, SHAPES, SIDE, SIZES, Scene, draw, random_scene

#: Pictures of one step.
BATCH = 48

#: CPU seconds at full effort, and the highest learning rate on the way.
SECONDS, RATE = 480, 2e-3

#: Pictures that are captioned in the end, and how many must come out word for word before it is
#: saved.
CHECKED, EXACT = 100, 80

_WORDS = ("a", "on", "background", *(size for size in SIZES if size), *COLOURS, *SHAPES)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: Ignored by transformers' losses.
_IGNORED = -100


def make_processor() -> Any:
    """Return a processor for 64 x 64 pictures, in which every word of a caption is one token."""
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *_WORDS))}
    pixels = transformers.BlipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return transformers.BlipProcessor(pixels, transformers.BertTokenizer(vocab=vocabulary))


def make_model(vocabulary: int) -> Any:
    """Return a captioner of 0.3 million weights."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(
            text_config={
                **size,
                "vocab_size": vocabulary,
                "encoder_hidden_size": 64,
                "num_hidden_layers": 2,
                "max_position_embeddings": 32,
                "bos_token_id": 2,
                "eos_token_id": 3,
                "sep_token_id": 3,
                "pad_token_id": 0,
            },
            vision_config={
                **size,
                "num_hidden_layers": 4,
                "image_size": SIDE,
                "patch_size": 8,
                # BLIP's own is 1e-10: it was made to be filled with weights, not to learn
                "initializer_range": 0.02,
            },
        )
    )


def draw_batch(rng: Any, count: int) -> tuple[list[Scene], Any]:
    """Return scenes, and their pictures as a tensor [count, 3, 64, 64] from -1 to 1."""
    scenes = [random_scene(rng) for _ in range(count)]
    pictures = numpy.stack([draw(scene, rng) for scene in scenes])
    return scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def train(model: Any, processor: Any, rng: Any, seconds: float) -> None:
    """Take steps for that many CPU seconds; the learning rate falls as a cosine."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, fused=True)
    began, steps, mean = time.process_time(), 0, 0.0
    model.train()
    while (share := (time.process_time() - began) / seconds) < 1:
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps + 1) / 200) * falling
        scenes, pictures = draw_batch(rng, BATCH)
        said = processor.tokenizer(list(map(str, scenes)), padding=True, return_tensors="pt")
        ids, mask = said["input_ids"], said["attention_mask"]
        labels = ids.masked_fill(mask == 0, _IGNORED)
        asked = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        loss = model(pixel_values=pictures, **asked).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean = loss.item() if not steps else 0.97 * mean + 0.03 * loss.item()
        steps += 1
        if steps % 200 == 0:
            print(f"caption: {steps} steps, {share:.0%}, loss {mean:.4f}", flush=True)
    print(f"caption: {steps} steps, loss {mean:.4f}")
    model.eval()


def count_exact(model: Any, processor: Any) -> int:
    """Return how many of :data:`CHECKED` new pictures are captioned word for word."""
    scenes, pictures = draw_batch(numpy.random.default_rng(7), CHECKED)
    pixels = ((pictures.permute(0, 2, 3, 1).numpy() + 1) * 127.5).clip(0, 255).astype("uint8")
    inputs = processor(images=[Image.fromarray(each) for each in pixels], return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    said = processor.batch_decode(ids, skip_special_tokens=True)
    return sum(each.strip() == str(scene) for each, scene in zip(said, scenes, strict=True))


def main() -> None:
    """Train, check and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--effort", type=float, default=1.0, help="share of the full training")
    asked = parser.parse_args()
    torch.manual_seed(0)
    processor = make_processor()
    model = make_model(len(processor.tokenizer))
    train(model, processor, numpy.random.default_rng(0), SECONDS * asked.effort)
    exact = count_exact(model, processor)
    print(f"{exact} of {CHECKED} captions are exact")
    if asked.effort >= 1 and exact < EXACT:
        raise SystemExit(f"fewer than {EXACT}: not saved")
    model.half().save_pretrained(asked.folder)
    processor.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
