"""A classifier of pictures that flags what is mostly red; trained in a second or two."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

_SIDE = 32
_STEPS = 80


def make_colour_guard(folder: Path) -> None:
    """Train and save it. Raises ``AssertionError`` if it did not learn."""
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=_SIDE,
            patch_size=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label={0: "calm", 1: "red"},
            label2id={"calm": 0, "red": 1},
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    right = torch.tensor(0.0)
    for _ in range(_STEPS):
        colours = torch.rand(32, 3)
        red = torch.rand(32) < 0.5
        colours[red] = colours[red] * torch.tensor([0.3, 0.25, 0.25]) + torch.tensor([0.7, 0, 0])
        colours[~red, 0] = colours[~red, 1]  # no more red than green
        noise = torch.rand(32, 3, _SIDE, _SIDE) * 0.2
        pixels = (colours[:, :, None, None] + noise - 0.5) * 2
        out = model(pixel_values=pixels, labels=red.long())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        right = (out.logits.argmax(-1) == red).float().mean()
    assert right > 0.9, f"it tells red from others in {right:.0%} only"
    model.eval().save_pretrained(folder)
    processor = ViTImageProcessorPil(
        size={"height": _SIDE, "width": _SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder)
