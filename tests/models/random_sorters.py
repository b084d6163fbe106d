"""Models that name sounds, with random weights, one a family, made in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers.processors import TemplateProcessing

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
#: Convolutions of an encoder of waves, of fewer samples a frame than the real 320.
_WAVES = _SMALL | {
    "vocab_size": 32,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
CLASSES = {0: "bell", 1: "rain", 2: "voice"}


def _waves(name: str) -> tuple[Any, ...]:
    config = getattr(transformers, f"{name}Config")(**_WAVES, id2label=CLASSES)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model, transformers.Wav2Vec2FeatureExtractor()


def _ast() -> tuple[Any, ...]:
    config = transformers.ASTConfig(
        **_SMALL, patch_size=16, max_length=64, num_mel_bins=32, id2label=CLASSES
    )
    model = transformers.ASTForAudioClassification(config)
    return model, transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)


def _clap() -> tuple[Any, ...]:
    text = _SMALL | {"vocab_size": 64, "pad_token_id": 1, "projection_dim": 16}
    audio = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "window_size": 4,
        "spec_size": 64,
        "num_mel_bins": 16,
        "projection_dim": 16,
    }
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    letters = "abcdefghijklmnopqrstuvwxyz ."
    vocabulary = {token: at for at, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=128,
    )
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16_000,
        frequency_max=8_000,
        max_length_s=1,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    return transformers.ClapModel(config), transformers.ClapProcessor(extractor, wrapped)


FAMILIES: dict[str, Callable[[], tuple[Any, ...]]] = {
    "wav2vec2": lambda: _waves("Wav2Vec2"),
    "hubert": lambda: _waves("Hubert"),
    "wavlm": lambda: _waves("WavLM"),
    "ast": _ast,
    "clap": _clap,
}


def make_sorter(folder: Path, family: str) -> Path:
    """Save a random model of a family, with all that prepares its inputs, into a folder."""
    torch.manual_seed(0)
    model, *rest = FAMILIES[family]()
    for parameter in model.parameters():
        if parameter.dim() == 2:  # far enough apart that what is heard changes what is said
            torch.nn.init.normal_(parameter, std=0.2)
    for part in (model, *rest):
        part.save_pretrained(folder)
    return folder
