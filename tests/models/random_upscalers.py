"""Pipelines that enlarge by denoising, with random weights, made in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.models.random_pipelines import sd


def _vae(*blocks: int) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.08333,
    ).eval()


def by_pixels() -> Any:
    """Stable Diffusion's upscaler, four times each way: the picture's pixels beside latents."""
    words = sd()
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=32,
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        num_class_embeds=400,
    )
    return diffusers.StableDiffusionUpscalePipeline(
        vae=_vae(8, 8, 16),
        text_encoder=words.text_encoder,
        tokenizer=words.tokenizer,
        unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction"),
    )


def by_latents() -> Any:
    """Stable Diffusion's latent upscaler, twice each way."""
    words = sd()
    unet = diffusers.UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=[32, 32, 64, 64],  # norms are of groups of 32
        time_cond_proj_dim=160,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=32,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        in_channels=8,
        mid_block_type=None,
        only_cross_attention=False,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
    )
    return diffusers.StableDiffusionLatentUpscalePipeline(
        vae=_vae(8, 8, 16, 16),
        text_encoder=words.text_encoder,
        tokenizer=words.tokenizer,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="sample"),
    )


def make_upscaler(folder: Path, make: Any) -> Path:
    """Save a random pipeline into a folder."""
    torch.manual_seed(0)
    make().save_pretrained(folder)
    return folder
