"""Image pipelines with random weights, of the families that differ most, made in milliseconds.

What they paint is noise, but deterministic noise, at 16 to 64 pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEXT = "a red blue green circle square on white black background photo of the small large"

_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def _clip_tokenizer() -> Any:
    """A letter a token."""
    base = list(bytes_to_unicode().values())
    words = [*base, *(letter + "</w>" for letter in base), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _clip(*, projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return getattr(transformers, name)(config).eval()


def _t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    pieces += [("▁" + word, -2.0) for word in TEXT.split()]
    pieces += [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.,"]
    made = Tokenizer(tokenizer_models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.T5TokenizerFast(tokenizer_object=made, extra_ids=0, model_max_length=64)


def _t5() -> Any:
    config = transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def _bytes_tokenizer(**fields: Any) -> Any:
    made = Tokenizer(tokenizer_models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", **fields)


def _vae(latents: int = 4, *, quant: bool = True, **fields: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **fields,
    ).eval()


def _flow_vae(latents: int = 4) -> Any:
    return _vae(latents, quant=False, shift_factor=0.0, scaling_factor=1.0)


def sd() -> Any:
    """Stable Diffusion 1 and 2: a U-Net, one CLIP."""
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**_UNET),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Stable Diffusion XL: two CLIPs, sizes as conditions."""
    own = {
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
    }
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=diffusers.UNet2DConditionModel(**_UNET | own),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
    )


def sdxl_large() -> Any:
    """Stable Diffusion XL at its own 1024 pixels a side, yet painting in a second or two."""
    pipe = sdxl()
    pipe.register_modules(
        vae=diffusers.AutoencoderKL(  # a latent stands for 32 x 32 pixels
            block_out_channels=(8,) * 6,
            down_block_types=("DownEncoderBlock2D",) * 6,
            up_block_types=("UpDecoderBlock2D",) * 6,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=1024,
        ).eval(),
        unet=diffusers.UNet2DConditionModel(**dict(pipe.unet.config) | {"sample_size": 32}),
    )
    return type(pipe)(**pipe.components)  # which reads the factors of the new parts


def flux() -> Any:
    """Flux: a transformer on packed latents, flow matching, CLIP beside T5."""
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_flow_vae(),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=False,
        ),
    )


def sd3() -> Any:
    """Stable Diffusion 3: a transformer, three text encoders."""
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_layers=2,  # a ControlNet adds to all but the last
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_flow_vae(),
        text_encoder=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(projected=True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )


def pixart() -> Any:
    """PixArt-Sigma: T5 alone, and callbacks of the older sort."""
    return diffusers.PixArtSigmaPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_t5(),
        vae=_vae(),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=32,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def sana() -> Any:
    """Sana: a language model reads the prompt, a deep-compression decoder, no image-to-image."""
    blocks = ("ResBlock", "EfficientViTBlock")
    return diffusers.SanaPipeline(
        tokenizer=_bytes_tokenizer(eos_token="</s>", bos_token="</s>"),
        text_encoder=transformers.Gemma2Model(
            transformers.Gemma2Config(
                vocab_size=400,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                bos_token_id=1,
                eos_token_id=1,
                pad_token_id=0,
            )
        ).eval(),
        vae=diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=[1, 1],
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=32,
            sample_size=16,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


_CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def z_image() -> Any:
    """Z-Image: a language model with a chat template reads the prompt."""
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_flow_vae(16),
        text_encoder=transformers.Qwen3Model(
            transformers.Qwen3Config(
                vocab_size=400,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
            )
        ).eval(),
        tokenizer=_bytes_tokenizer(
            eos_token="<|im_end|>", chat_template=_CHAT, model_max_length=64
        ),
        transformer=diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            qk_norm=True,
            cap_feat_dim=16,
            rope_theta=256.0,
            t_scale=1000.0,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        ),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    make.__name__: make for make in (sd, sdxl, sdxl_large, flux, sd3, pixart, sana, z_image)
}


def make_pipeline(folder: Path, family: str) -> Path:
    """Save a random pipeline of a family into a folder."""
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(folder)
    return folder
