"""LoRAs, ControlNets and upscalers with random weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file

_RANK = 2


def make_lora(
    file: Path,
    pipe: Any,
    *,
    seed: int = 0,
    parts: Mapping[str, tuple[str, ...]] | None = None,
    strength: float = 0.3,
) -> Path:
    """Save a LoRA of some layers of a pipeline: a name's end, by component."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for part, ends in (parts or {"unet": ("to_q", "to_v")}).items():
        for name, module in getattr(pipe, part).named_modules():
            if name.endswith(ends):
                down = torch.randn(_RANK, module.in_features, generator=random)
                up = torch.randn(module.out_features, _RANK, generator=random) * strength
                state[f"{part}.{name}.lora_A.weight"] = down
                state[f"{part}.{name}.lora_B.weight"] = up
    assert state
    save_file(state, file)
    return file


def make_controlnet(folder: Path, pipe: Any) -> Path:
    """Save a ControlNet for a pipeline's UNet; its outputs are not zero, as a new one's are."""
    torch.manual_seed(0)
    halvings = int(pipe.vae_scale_factor).bit_length() - 1
    widths = tuple(8 << number for number in range(halvings + 1))
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=widths)
    ends = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    for layer in ends:
        torch.nn.init.normal_(layer.weight, std=0.1)
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=5.0)
    net.save_pretrained(folder)
    return folder


def make_transformer_controlnet(folder: Path, pipe: Any, **changes: Any) -> Path:
    """Save a ControlNet for a Flux or a Stable Diffusion 3, with outputs that are not zero."""
    torch.manual_seed(0)
    if hasattr(pipe, "text_encoder_3"):
        cls, entry = diffusers.SD3ControlNetModel, "pos_embed_input.proj"
        own = {"extra_conditioning_channels": 0}
    else:
        cls, entry, own = diffusers.FluxControlNetModel, "controlnet_x_embedder", {}
    known = inspect.signature(cls.__init__).parameters
    config = {key: value for key, value in pipe.transformer.config.items() if key in known}
    net = cls(**config | own | changes)
    for layer in [*net.controlnet_blocks, net.get_submodule(entry)]:
        torch.nn.init.normal_(layer.weight, std=0.3)
    net.save_pretrained(folder)
    return folder


def save_swin2sr(folder: Path, **changes: Any) -> Path:
    """Save a Swin2SR that doubles sides, with random weights."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 8,
        "upscale": 2,
        "upsampler": "pixelshuffle",
        **changes,
    }
    model = transformers.Swin2SRForImageSuperResolution(transformers.Swin2SRConfig(**config))
    model.save_pretrained(folder)
    return folder
