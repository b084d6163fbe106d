"""Video pipelines with random weights, of the families that differ most, made in milliseconds.

What they film is noise, but deterministic noise, at 16 to 64 pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.models import random_pipelines as parts

# Saving a pipeline looks at this class. It imports ONNX Runtime, where that is installed, which
# keeps files open: before a test, not in it.
getattr(diffusers, "OnnxRuntimeModel", None)


def ltx() -> Any:
    """LTX-Video: T5, a transformer over all frames, a causal decoder."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=32,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=parts._t5(),
        tokenizer=parts._t5_tokenizer(),
        transformer=transformer,
    )


def wan(**fields: Any) -> Any:
    """Wan 2.1."""
    return diffusers.WanPipeline(
        **fields,
        tokenizer=parts._t5_tokenizer(),
        text_encoder=parts._t5(),
        transformer=diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        ),
        vae=diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ).eval(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def wan_of_both() -> Any:
    """Wan 2.2 with 5 B parameters: it may begin with a picture."""
    return wan(expand_timesteps=True)


def cogvideox() -> Any:
    """CogVideoX."""
    return diffusers.CogVideoXPipeline(
        tokenizer=parts._t5_tokenizer(),
        text_encoder=parts._t5(),
        vae=diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ).eval(),
        transformer=diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            max_text_seq_length=226,
        ),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def hunyuan() -> Any:
    """HunyuanVideo: a language model and a CLIP read the prompt."""
    return diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=400,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                pad_token_id=0,
            )
        ).eval(),
        tokenizer=parts._bytes_tokenizer(model_max_length=512),
        text_encoder_2=parts._clip(),
        tokenizer_2=parts._clip_tokenizer(),
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=32,
            rope_axes_dim=(2, 4, 4),
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def mochi() -> Any:
    """Mochi 1."""
    return diffusers.MochiPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=parts._t5(),
        tokenizer=parts._t5_tokenizer(),
        vae=diffusers.AutoencoderKLMochi(
            latent_channels=12,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ).eval(),
        transformer=diffusers.MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            pooled_projection_dim=16,
            text_embed_dim=32,
            time_embed_dim=4,
            max_sequence_length=256,
        ),
    )


def animatediff() -> Any:
    """AnimateDiff: Stable Diffusion with a motion module."""
    unet = diffusers.UNet2DConditionModel(**parts._UNET)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
    )
    return diffusers.AnimateDiffPipeline(
        vae=parts._vae(),
        text_encoder=parts._clip(),
        tokenizer=parts._clip_tokenizer(),
        unet=diffusers.UNetMotionModel.from_unet2d(unet, adapter),
        motion_adapter=adapter,
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
        feature_extractor=None,
        image_encoder=None,
    )


def text_to_video_sd() -> Any:
    """ModelScope's: a 3D U-Net, the older way to be called back."""
    return diffusers.TextToVideoSDPipeline(
        vae=parts._vae(),
        text_encoder=parts._clip(),
        tokenizer=parts._clip_tokenizer(),
        unet=diffusers.UNet3DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (ltx, wan, wan_of_both, cogvideox, hunyuan, mochi, animatediff, text_to_video_sd)
}


def make_video_pipeline(folder: Path, family: str) -> Path:
    """Save a random pipeline of a family into a folder."""
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(folder)
    return folder
