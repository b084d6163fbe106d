"""SpeechT5 through transformers, with its vocoder and the voices that its owner put beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blip.errors import InvalidRequest, ModelLoadFailed
from blip.kinds.speech import SpeechInput
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure, load_model, load_part
from blip_node.runtimes.speaking.chance import seeder
from blip_node.runtimes.speaking.synthesizer import Say, Spoken, unsayable
from blip_node.runtimes.watched import Watched

#: Beside the model's own files: a folder with its vocoder, and a file with a tensor a voice.
VOCODER = "vocoder"
VOICES = "voices.safetensors"


class SpeechT5:
    """Implements :class:`~blip_node.runtimes.speaking.synthesizer.Synthesizer`."""

    def __init__(self, spec: LoadSpec, report: Callable[[float], None]) -> None:
        folder = Path(spec.path)
        if not (folder / VOCODER / "config.json").is_file():
            raise ModelLoadFailed(
                f"model '{spec.model}': {folder} has no folder '{VOCODER}': SpeechT5 makes "
                "spectrograms, and a vocoder makes sound of them",
                hint="Save microsoft/speecht5_hifigan there; docs/speech.md shows how.",
            )
        self._tokenizer = load_part(spec, "SpeechT5Tokenizer", normalize=True)
        self._network = load_model(
            spec, "SpeechT5ForTextToSpeech", lambda share: report(0.7 * share), unused=()
        )
        # convolutions alone: there is nothing in it to quantise
        self._vocoder = load_model(
            spec,
            "SpeechT5HifiGan",
            report,
            folder=folder / VOCODER,
            unused=(),
            quantise=False,
        )
        self._speakers = _speakers(spec, folder / VOICES, self._network)
        self.voices = list(self._speakers)
        self.rate = int(self._vocoder.config.sampling_rate)
        decoder = self._network.speecht5.decoder.wrapped_decoder
        self._watched = Watched((decoder, self._vocoder))

    def read(self, sentence: str, *, lenient: bool) -> Any | None:
        """Return the ids of a sentence's characters, numbers as English words."""
        ids = self._tokenizer(sentence, return_tensors="pt")["input_ids"]
        limit = int(self._network.config.max_text_positions)
        if ids.shape[1] > limit:
            raise InvalidRequest(
                f"'input': a sentence of {ids.shape[1]} tokens; this model reads {limit}.",
                hint="Write shorter sentences.",
                param="input",
            )
        unknown = self._tokenizer.unk_token_id
        if unknown in ids and not lenient:
            chars = [
                char
                for char in dict.fromkeys(sentence)
                if char.isalnum() and unknown in self._tokenizer(char)["input_ids"]
            ]
            if chars:
                raise unsayable(chars, "Write it with the letters of the voice's language.")
        return ids

    def begin(self, wishes: SpeechInput, voice: str, look: Callable[[], None]) -> Say:
        """Speak with seeded dropout, which SpeechT5 has on purpose.

        It knows no speed: its spectrogram is stretched or pressed together in time.
        """
        sow = seeder(wishes.seed)

        def say(number: int, ids: Any) -> Spoken:
            self._watched.look = look
            sow(number)
            device = self._network.device
            with torch.inference_mode():
                spectrogram = self._network.generate_speech(
                    ids.to(device), self._speakers[voice].to(device)
                )
                samples = self._vocoder(_stretched(spectrogram, wishes.speed))
            return Spoken(samples.float().cpu().numpy(), int(ids.shape[1]))

        return say


def _stretched(spectrogram: Any, speed: float) -> Any:
    """Return a spectrogram (time, mel bins) at another speed; pitch is not in its time axis."""
    if speed == 1:
        return spectrogram
    length = max(1, round(spectrogram.shape[0] / speed))
    bins = spectrogram.T.unsqueeze(0)
    return torch.nn.functional.interpolate(bins, length, mode="linear").squeeze(0).T.contiguous()


def _speakers(spec: LoadSpec, file: Path, network: Any) -> dict[str, Any]:
    """Return the speaker embeddings by name, each of shape (1, size), in the file's order."""
    from safetensors.torch import load_file

    size = int(network.config.speaker_embedding_dim)
    how = (
        f"Write one tensor a voice, of {size} numbers (an x-vector), into {VOICES}; docs/speech.md "
        "shows how."
    )
    if not file.is_file():
        raise ModelLoadFailed(
            f"model '{spec.model}': {file} is not there, and SpeechT5 has no voice of its own",
            hint=how,
        )
    try:
        found = load_file(file)
    except Exception as error:
        raise load_failure(spec, error) from error
    wrong = [name for name, tensor in found.items() if tensor.numel() != size]
    if wrong or not found:
        what = f"'{wrong[0]}' is no voice of {size} numbers" if wrong else "it holds no voice"
        raise ModelLoadFailed(f"model '{spec.model}': {file}: {what}", hint=how)
    return {name: found[name].reshape(1, size).to(network.dtype) for name in sorted(found)}
