"""A Whisper with random weights, windows of six seconds and a byte for a letter.

What it hears is noise, but always the same noise: who decodes it rightly gets the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

#: Seconds of a window, and of one of the encoder's frames.
WINDOW, STEP = 6, 0.02

#: Tokens of the decoder's whole window; half of them may be generated.
TOKENS = 48

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
END = len(_BYTES)
_LANGUAGES = ("en", "de", "fr")
_MARKS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{language}|>" for language in _LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
IDS = {mark: END + number for number, mark in enumerate(_MARKS)}
FIRST_STAMP = END + len(_MARKS)
STAMPS = round(WINDOW / STEP) + 1
SIZE = FIRST_STAMP + STAMPS


def make_tokenizer() -> Any:
    """Return a Whisper tokenizer of single bytes."""
    raw = Tokenizer(models.BPE(vocab={byte: id for id, byte in enumerate(_BYTES)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.WhisperTokenizerFast(
        tokenizer_object=raw,
        vocab={byte: id for id, byte in enumerate(_BYTES)},
        merges=[],
        bos_token=_MARKS[0],
        eos_token=_MARKS[0],
        unk_token=_MARKS[0],
        pad_token=_MARKS[0],
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS[1:])})
    tokenizer.add_tokens([f"<|{number * STEP:.2f}|>" for number in range(STAMPS)])
    return tokenizer


def make_whisper(folder: Path, *, several: bool = True, aligned: bool = True, seed: int = 0) -> Any:
    """Write one and return the model. ``several`` languages, or English only."""
    torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=SIZE,
            num_mel_bins=16,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=STAMPS - 1,
            max_target_positions=TOKENS,
            pad_token_id=END,
            bos_token_id=END,
            eos_token_id=END,
            decoder_start_token_id=IDS["<|startoftranscript|>"],
            suppress_tokens=None,
            begin_suppress_tokens=None,
            init_std=0.3,
        )
    ).eval()
    options: dict[str, Any] = {}
    if several:
        options["lang_to_id"] = {f"<|{each}|>": IDS[f"<|{each}|>"] for each in _LANGUAGES}
        options["task_to_id"] = {each: IDS[f"<|{each}|>"] for each in ("transcribe", "translate")}
    if aligned:
        options["alignment_heads"] = [[0, 1], [1, 0]]
    model.generation_config = transformers.GenerationConfig(
        max_length=TOKENS,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=IDS["<|startoftranscript|>"],
        prev_sot_token_id=IDS["<|startofprev|>"],
        no_timestamps_token_id=IDS["<|notimestamps|>"],
        is_multilingual=several,
        max_initial_timestamp_index=50,
        suppress_tokens=[0],
        begin_suppress_tokens=[END],
        **options,
    )
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW).save_pretrained(
        folder
    )
    return model
