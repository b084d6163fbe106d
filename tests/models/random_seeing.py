"""Models with eyes and random weights, one a family, made in milliseconds.

What they see is noise, but deterministic noise, in the shapes of real answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers.convert_slow_tokenizer import bytes_to_unicode

from blip_node.runtimes.sight.loading import without_videos

#: Of most encoders: enough to compute something, and no more.
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_EYE = _SMALL | {"image_size": 32, "patch_size": 8}
_SIDES = {"height": 32, "width": 32}
_SQUARE = {"shortest_edge": 32}

#: Puts pictures where they stand among the texts.
_TEMPLATE = (
    "{% for m in messages %}{{m['role']}}: {% for c in m['content'] %}"
    "{% if c['type']=='image' %}<image>{% else %}{{c['text']}}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def _bytes_tokenizer(*special: str) -> Any:
    """Return a tokenizer of bytes and few words; ``special`` are its first tokens."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world what is in the image a photo of"], trainer)
    return tokenizer


def _wrapped(tokenizer: Any, **options: Any) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        **options,
    )


def _words_tokenizer() -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"##{letter}" for letter in letters]
    return transformers.BertTokenizer(vocab={token: n for n, token in enumerate(tokens)})


def _clip_tokenizer() -> Any:
    base = list(bytes_to_unicode().values())
    tokens = [*base, *(letter + "</w>" for letter in base), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


_CLIP_TEXT = _SMALL | {
    "vocab_size": 514,
    "num_attention_heads": 4,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}


def _blip() -> tuple[Any, ...]:
    text = _SMALL | {
        "vocab_size": 57,
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    # BLIP's own range is 1e-10: it would see nothing at all
    eye = _EYE | {"initializer_range": 0.02}
    config = transformers.BlipConfig(text_config=text, vision_config=eye)
    pixels = transformers.BlipImageProcessorPil(size=_SIDES)
    return (
        transformers.BlipForConditionalGeneration(config),
        transformers.BlipProcessor(pixels, _words_tokenizer()),
    )


def _blip2(name: str = "Blip2") -> tuple[Any, ...]:
    text = transformers.OPTConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    former = getattr(transformers, f"{name}QFormerConfig")
    vision = getattr(transformers, f"{name}VisionConfig")
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision(**_EYE).to_dict(),
        qformer_config=former(vocab_size=57, encoder_hidden_size=32, **_SMALL).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=4,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    pixels = transformers.BlipImageProcessorPil(size=_SIDES)
    tokenizer = _wrapped(_bytes_tokenizer("<image>"))
    if name == "Blip2":
        return model, transformers.Blip2Processor(pixels, tokenizer, num_query_tokens=4)
    return model, transformers.InstructBlipProcessor(
        pixels, tokenizer, _words_tokenizer(), num_query_tokens=4
    )


def _instructblip() -> tuple[Any, ...]:
    return _blip2("InstructBlip")


def _git() -> tuple[Any, ...]:
    config = transformers.GitConfig(
        vision_config=_EYE,
        **_SMALL,
        vocab_size=57,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    pixels = transformers.CLIPImageProcessorPil(size=_SQUARE, crop_size=_SIDES)
    return (
        transformers.GitForCausalLM(config),
        transformers.GitProcessor(pixels, _words_tokenizer()),
    )


def _vit_gpt2() -> tuple[Any, ...]:
    decoder = transformers.GPT2Config(
        vocab_size=300,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(transformers.ViTConfig(**_EYE)),
        decoder=transformers.GPT2LMHeadModel(decoder),
    )
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    pixels = transformers.ViTImageProcessorPil(size=_SIDES)
    return model, _wrapped(_bytes_tokenizer()), pixels


def _llava() -> tuple[Any, ...]:
    tokenizer = _wrapped(
        _bytes_tokenizer("<image>"),
        extra_special_tokens={"image_token": "<image>"},
        chat_template=_TEMPLATE,
    )
    text = transformers.LlamaConfig(
        **_SMALL,
        vocab_size=300,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    how = {"vision_feature_select_strategy": "default"}
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**_EYE),
            text_config=text,
            image_token_index=4,
            image_seq_length=16,
            vision_feature_layer=-1,
            **how,
        )
    )
    pixels = transformers.CLIPImageProcessorPil(size=_SQUARE, crop_size=_SIDES)
    processor = transformers.LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=8,
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
        **how,
    )
    return model, processor


def _qwen2_vl() -> tuple[Any, ...]:
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    template = _TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = _wrapped(
        _bytes_tokenizer(*marks),
        extra_special_tokens={"image_token": marks[2], "video_token": marks[3]},
        chat_template=template,
    )
    text = _SMALL | {
        "vocab_size": 300,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }
    eye = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8}
    model = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(
            text_config=text,
            vision_config=eye,
            vision_start_token_id=4,
            vision_end_token_id=5,
            image_token_id=6,
            video_token_id=7,
        )
    )
    pixels = transformers.Qwen2VLImageProcessorPil(
        patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    processor = without_videos(transformers.Qwen2VLProcessor)
    return model, processor(pixels, tokenizer, chat_template=template)


def _vit() -> tuple[Any, ...]:
    config = transformers.ViTConfig(**_EYE, num_labels=7)
    return transformers.ViTForImageClassification(config), transformers.ViTImageProcessorPil(
        size=_SIDES
    )


def _clip() -> tuple[Any, ...]:
    config = transformers.CLIPConfig(text_config=_CLIP_TEXT, vision_config=_EYE, projection_dim=16)
    pixels = transformers.CLIPImageProcessorPil(size=_SQUARE, crop_size=_SIDES)
    return transformers.CLIPModel(config), transformers.CLIPProcessor(pixels, _clip_tokenizer())


def _yolos() -> tuple[Any, ...]:
    config = transformers.YolosConfig(
        **_SMALL, image_size=[64, 64], patch_size=16, num_detection_tokens=5, num_labels=3
    )
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessorPil(
        size={"height": 64, "width": 64}
    )


def _owlvit() -> tuple[Any, ...]:
    config = transformers.OwlViTConfig(
        text_config=_CLIP_TEXT | {"max_position_embeddings": 16},
        vision_config=_EYE,
        projection_dim=32,
    )
    pixels = transformers.OwlViTImageProcessorPil(size=_SIDES, crop_size=_SIDES)
    tokenizer = _clip_tokenizer()
    tokenizer.model_max_length = 16
    return (
        transformers.OwlViTForObjectDetection(config),
        transformers.OwlViTProcessor(pixels, tokenizer),
    )


def _dpt() -> tuple[Any, ...]:
    config = transformers.DPTConfig(
        **_SMALL | {"num_hidden_layers": 4},
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return transformers.DPTForDepthEstimation(config), transformers.DPTImageProcessorPil(
        size=_SIDES
    )


def _segformer() -> tuple[Any, ...]:
    config = transformers.SegformerConfig(
        hidden_sizes=[16] * 4,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
        num_labels=3,
    )
    model = transformers.SegformerForSemanticSegmentation(config)
    return model, transformers.SegformerImageProcessorPil(size={"height": 64, "width": 64})


def _detr_panoptic() -> tuple[Any, ...]:
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        num_labels=3,
    )
    model = transformers.DetrForSegmentation(config)
    return model, transformers.DetrImageProcessorPil(size={"height": 64, "width": 64})


def _siglip() -> tuple[Any, ...]:
    text = _SMALL | {"vocab_size": 57, "max_position_embeddings": 16, "projection_size": 32}
    text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.SiglipConfig(text_config=text, vision_config=_EYE)
    tokenizer = _words_tokenizer()
    tokenizer.model_max_length = 16
    pixels = transformers.SiglipImageProcessorPil(size=_SIDES)
    return transformers.SiglipModel(config), transformers.SiglipProcessor(pixels, tokenizer)


def _vit_eyes(*, pools: bool = False) -> tuple[Any, ...]:
    model = transformers.ViTModel(transformers.ViTConfig(**_EYE), add_pooling_layer=pools)
    return model, transformers.ViTImageProcessorPil(size=_SIDES)


def _resnet() -> tuple[Any, ...]:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    pixels = transformers.ConvNextImageProcessorPil(size=_SQUARE)
    return transformers.ResNetModel(config), pixels


def _clip_eyes() -> tuple[Any, ...]:
    config = transformers.CLIPVisionConfig(**_EYE, projection_dim=16)
    pixels = transformers.CLIPImageProcessorPil(size=_SQUARE, crop_size=_SIDES)
    return transformers.CLIPVisionModel(config), pixels


FAMILIES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "blip": _blip,
    "blip-2": _blip2,
    "instructblip": _instructblip,
    "git": _git,
    "vit-gpt2": _vit_gpt2,
    "llava": _llava,
    "qwen2-vl": _qwen2_vl,
    "vit": _vit,
    "clip": _clip,
    "siglip": _siglip,
    "yolos": _yolos,
    "owlvit": _owlvit,
    "dpt": _dpt,
    "segformer": _segformer,
    "detr-panoptic": _detr_panoptic,
    "vit-eyes": _vit_eyes,
    "vit-encoder": lambda: _vit_eyes(pools=True),
    "resnet": _resnet,
    "clip-eyes": _clip_eyes,
}


def make_seeing(folder: Path, family: str) -> Path:
    """Save a random model of a family, with all that prepares its inputs, into a folder."""
    torch.manual_seed(0)
    model, *rest = FAMILIES[family]()
    if family in ("llava", "qwen2-vl"):
        for parameter in model.parameters():
            if parameter.dim() > 1:  # far enough apart that what is seen changes what is said
                torch.nn.init.normal_(parameter, std=0.2)
    for part in (model, *rest):
        part.save_pretrained(folder)
    return folder
