"""Speech models with random weights, made in milliseconds.

What they say is noise, but deterministic noise, as long as the text asks for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import sentencepiece
import torch
import transformers

LETTERS = "_abcdefghijklmnopqrstuvwxyz' -,.?!"

#: Samples a second of all voices here.
RATE = 16_000


def make_vits(folder: Path, *, speakers: int = 1, letters: str = LETTERS, **tokenizer: Any) -> Path:
    """Save a random VITS into a folder: it reads lower-case letters."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=65,
        upsample_initial_channel=16,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        posterior_encoder_num_wavenet_layers=2,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        depth_separable_num_layers=2,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        # so slow that rounding sounds up to whole frames is little beside them
        speaking_rate=1 / 3,
        sampling_rate=RATE,
    )
    model = transformers.VitsModel(config)
    _louder(model.decoder, 2)
    model.save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    said = {"language": "eng", "normalize": True, "phonemize": False, **tokenizer}
    transformers.VitsTokenizer(
        str(vocabulary), pad_token="_", unk_token="_", **said
    ).save_pretrained(folder)
    return folder


def make_speecht5(folder: Path, *, voices: tuple[str, ...] = ("anna", "ben")) -> Path:
    """Save a random SpeechT5 into a folder, with vocoder and voices as blip expects them."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog, and why not?\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spm_char"),
        model_type="char",
        vocab_size=34,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    tokenizer = transformers.SpeechT5Tokenizer(str(folder / "spm_char.model"))
    tokenizer.save_pretrained(folder)
    config = transformers.SpeechT5Config(
        vocab_size=81,
        hidden_size=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        num_mel_bins=20,
        speaker_embedding_dim=16,
        speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=16,
        reduction_factor=8,
        max_text_positions=120,
    )
    model = transformers.SpeechT5ForTextToSpeech(config)
    with torch.no_grad():  # one that never thinks it is done speaks for a time that can be told
        model.speech_decoder_postnet.prob_out.weight.zero_()
        model.speech_decoder_postnet.prob_out.bias.fill_(-9)
    model.save_pretrained(folder)
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=20,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            sampling_rate=RATE,
        )
    )
    _louder(vocoder, 16)
    vocoder.save_pretrained(folder / "vocoder")
    said = {name: torch.randn(16) for name in voices}
    safetensors.torch.save_file(said, folder / "voices.safetensors")
    return folder


def make_piper(folder: Path, speakers: dict[str, int], default: int) -> Path:
    """Write a voice in Piper's format: a sample a letter, another one for each speaker."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "voice.onnx"
    file.write_bytes(_sines())
    letters = {letter: [number] for number, letter in enumerate("_^$" + LETTERS[1:])}
    config = {
        "audio": {"sample_rate": RATE},
        "espeak": {"voice": "en-us"},
        "language": {"code": "en_GB"},
        "phoneme_type": "text",
        "phoneme_id_map": letters,
        "num_symbols": len(letters),
        "num_speakers": len(speakers),
        "speaker_id_map": speakers,
        "default_speaker_id": default,
    }
    (folder / "voice.onnx.json").write_text(json.dumps(config))
    return file


def _sines() -> bytes:
    """Return an ONNX model: the sine of each id plus the speaker's, written as protobuf by hand."""
    int64, float32, to_float = 7, 1, _field(1, b"to") + _field(3, 1) + _field(20, 2)

    def node(kind: bytes, inputs: list[bytes], output: bytes, attribute: bytes = b"") -> bytes:
        named = b"".join(_field(1, name) for name in inputs) + _field(2, output)
        return _field(1, named + _field(4, kind) + (attribute and _field(5, attribute)))

    def value(place: int, name: bytes, element: int, *dimensions: bytes) -> bytes:
        shape = b"".join(_field(1, _field(2, each)) for each in dimensions)
        tensor = _field(1, element) + _field(2, shape)
        return _field(place, _field(1, name) + _field(2, _field(1, tensor)))

    graph = (
        node(b"Cast", [b"input"], b"ids", to_float)
        + node(b"Cast", [b"sid"], b"speaker", to_float)
        + node(b"Add", [b"ids", b"speaker"], b"sum")
        + node(b"Sin", [b"sum"], b"output")
        + _field(2, b"sines")
        + value(11, b"input", int64, b"batch", b"length")
        + value(11, b"input_lengths", int64, b"batch")
        + value(11, b"scales", float32, b"three")
        + value(11, b"sid", int64, b"batch")
        + value(12, b"output", float32, b"batch", b"length")
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))


def _field(number: int, content: int | bytes) -> bytes:
    """Return a field of protobuf: a small number, or bytes with their length."""
    if isinstance(content, int):
        return bytes([*_varint(number << 3), *_varint(content)])
    return bytes([*_varint(number << 3 | 2), *_varint(len(content))]) + content


def _varint(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


def _louder(network: Any, times: float) -> None:
    """Make what comes out of a network more than rounding."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(times)
