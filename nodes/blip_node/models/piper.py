"""Voices of Piper on disk: an ``.onnx`` file, and beside it ``.onnx.json``, which describes it.

The format: https://github.com/OHF-Voice/piper1-gpl/blob/main/docs/TRAINING.md. Nothing of Piper
itself, which is under the GPL, is needed to read that.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from blip.errors import ModelLoadFailed
from blip_node.models.files import positive, read_object

#: How voices spell sounds, as far as Piper can do it with nothing but itself. The others want
#: packages of their own, or download what they need while they speak.
PHONEMES = ("espeak", "text")


class PiperVoice(NamedTuple):
    """What a voice says of itself: samples a second, language, and ids of its speakers by name."""

    sample_rate: int
    language: str
    speakers: dict[str, int]


def config_of(voice: Path) -> Path:
    """Return where the description of an ``.onnx`` file stands."""
    return voice.with_name(voice.name + ".json")


def voice_files(folder: Path) -> list[Path]:
    """Return the voices of a folder, sorted."""
    return sorted(file for file in folder.glob("*.onnx") if config_of(file).is_file())


def read_voice(voice: Path) -> PiperVoice:
    """Read a voice's description.

    Raises :class:`~blip.errors.ModelLoadFailed` when it is not sound, or of a voice that needs
    more than Piper.
    """
    file = config_of(voice)
    config = read_object(file)
    audio, speakers = config.get("audio"), config.get("speaker_id_map") or {}
    rate = positive(audio.get("sample_rate")) if isinstance(audio, dict) else None
    sound = isinstance(speakers, dict) and all(isinstance(id, int) for id in speakers.values())
    if rate is None or not sound or not isinstance(config.get("phoneme_id_map"), dict):
        raise ModelLoadFailed(f"{file} does not describe a voice of Piper")
    phonemes = config.get("phoneme_type", "espeak")
    if phonemes not in PHONEMES:
        raise ModelLoadFailed(
            f"{voice} spells sounds as {phonemes}, which takes more than Piper itself",
            hint=f"Choose a voice with {' or '.join(PHONEMES)}.",
        )
    if not speakers:
        count = positive(config.get("num_speakers")) or 1
        speakers = {str(number): number for number in range(count)} if count > 1 else {}
    language = config.get("language")
    code = language.get("code") if isinstance(language, dict) else None
    espeak = config.get("espeak")
    spoken = espeak.get("voice") if isinstance(espeak, dict) else None
    return PiperVoice(rate, str(code or spoken or ""), dict(speakers))
