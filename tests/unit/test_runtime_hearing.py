"""The transcription runtime with ``tiny-dtmf``, and with a Whisper whose weights are random."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from transformers.models.whisper import generation_whisper

from blip.errors import (
    BlipError,
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    ModelLoadFailed,
    RuntimeFailed,
    UnsupportedField,
    WorkerCrashed,
)
from blip.kinds.transcription import Transcript, heard_from_wire, transcript_from_wire
from blip_node.audio.decode import decode
from blip_node.models import ModelSpec, describe
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.hearing.segments import Piece, cut
from blip_node.runtimes.hearing.warp import first_frames
from blip_node.runtimes.transcription import TranscriptionRuntime
from tests.models.jobs import RecordingJob
from tests.models.random_whisper import END, FIRST_STAMP, IDS, STEP, TOKENS, WINDOW, make_whisper
from tests.models.tones import RATE, keys_file, sound_file, tones

FILE = keys_file("123 456 789 555")  # 5.2 seconds: one window of the random Whisper
DTMF = Path(__file__).parents[1] / "models" / "tiny-dtmf"


def load(folder: Path, **changes: Any) -> TranscriptionRuntime:
    runtime = TranscriptionRuntime()
    runtime.load(LoadSpec("a-model", str(folder), "cpu", 1, **changes), lambda share: None)
    return runtime


@pytest.fixture(scope="module")
def dtmf() -> Iterator[TranscriptionRuntime]:
    runtime = load(DTMF)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whisper")
    make_whisper(made)
    return made


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Iterator[TranscriptionRuntime]:
    runtime = load(folder)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TranscriptionRuntime]:
    made = tmp_path_factory.mktemp("english")
    make_whisper(made, several=False, aligned=False)
    runtime = load(made)
    yield runtime
    runtime.close()


async def hear(
    runtime: TranscriptionRuntime, file: bytes, kind: str = "transcription", **fields: Any
) -> Transcript:
    outcome = await runtime.run(RecordingJob(kind, file=file, **fields))
    return transcript_from_wire(outcome.payload)


# --- CTC -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "format"),
    [
        ("5551234", "WAV"),
        ("0", "WAV"),
        ("11 22 33", "WAV"),
        ("*#*#", "FLAC"),
        ("0123456789*#", "MP3"),
        ("0123456789*#", "OGG"),
    ],
)
async def test_keys_are_written_down(dtmf: TranscriptionRuntime, keys: str, format: str) -> None:
    assert (await hear(dtmf, keys_file(keys, format))).text == keys.replace(" ", "")


async def test_a_long_sound_is_heard_in_windows_without_a_seam(dtmf: TranscriptionRuntime) -> None:
    rng = numpy.random.default_rng(5)
    keys = "".join(rng.choice(list("0123456789*#"), 420))  # 76 seconds without a rest
    found = await hear(dtmf, keys_file(keys))
    assert found.text == keys
    assert found.duration == pytest.approx(75.65)
    assert found.language is None


async def test_segments_and_words_have_the_times_of_their_keys(dtmf: TranscriptionRuntime) -> None:
    found = await hear(dtmf, keys_file("12 345 6"), words=True)
    assert [segment.text for segment in found.segments] == ["12", "345", "6"]
    # from 0.05 s on a key each 0.18 s, of which it is silent for 0.06 s; a rest takes a second
    expected = [(0.05, 0.35), (1.41, 1.89), (2.95, 3.07)]
    for segment, (start, end) in zip(found.segments, expected, strict=True):
        # a CTC model may say so at any moment of a key
        assert segment.start == pytest.approx(start, abs=0.1)
        assert segment.end == pytest.approx(end, abs=0.1)
        assert segment.words is not None
        assert [tuple(word) for word in segment.words] == [
            (segment.text, segment.start, segment.end)
        ]
        assert segment.avg_logprob is segment.no_speech is segment.seek is None
    assert (await hear(dtmf, keys_file("12"))).segments[0].words is None


async def test_silence_has_no_words(dtmf: TranscriptionRuntime) -> None:
    found = await hear(dtmf, keys_file("  "))
    assert (found.segments, found.text) == ([], "")
    assert found.duration == pytest.approx(2.05)


@pytest.mark.parametrize(
    ("field", "value"), [("language", "en"), ("prompt", "keys"), ("temperature", 0.5)]
)
async def test_what_a_ctc_model_cannot_do_is_refused_by_name(
    dtmf: TranscriptionRuntime, field: str, value: Any
) -> None:
    with pytest.raises(UnsupportedField, match=f"'{field}'") as caught:
        await hear(dtmf, keys_file("1"), **{field: value})
    assert caught.value.param == field


async def test_parts_come_window_by_window(dtmf: TranscriptionRuntime) -> None:
    file = keys_file("0123456789 " * 24)  # 67 seconds
    quiet = RecordingJob("transcription", file=file)
    await dtmf.run(quiet)
    assert quiet.parts == []
    job = RecordingJob("transcription", file=file, parts=True)
    outcome = await dtmf.run(job)
    whole = transcript_from_wire(outcome.payload)
    heard = [heard_from_wire(part) for part in job.parts]
    assert len(heard) == 4
    told = [segment for each in heard for segment in each.segments]
    assert told == whole.segments[: len(told)]
    assert len(told) >= len(whole.segments) - 1
    done = [each.done for each in heard]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(whole.duration, abs=0.05)
    assert outcome.usage == {"audio_ms": round(whole.duration * 1000), "completion_tokens": 240}
    assert outcome.units == whole.duration


async def test_a_slow_client_gets_its_parts_later(dtmf: TranscriptionRuntime) -> None:
    job = RecordingJob("transcription", file=keys_file("0123456789 " * 24), parts=True)
    job.let(writable=False)
    outcome = await dtmf.run(job)
    assert job.parts == []
    assert transcript_from_wire(outcome.payload).text == "0123456789" * 24


async def test_a_cancel_stops_it_after_the_window(dtmf: TranscriptionRuntime) -> None:
    job = RecordingJob(
        "transcription",
        lambda job: job.cancel(),
        file=keys_file("0123456789 " * 100),
        parts=True,
    )
    with pytest.raises(Cancelled):
        await dtmf.run(job)
    assert len(job.parts) == 1
    assert (await hear(dtmf, keys_file("55"))).text == "55"


async def test_unloading_stops_what_runs() -> None:
    runtime = load(DTMF)

    def close(job: RecordingJob) -> None:
        runtime._engine._lane._closed = True  # type: ignore[union-attr]

    job = RecordingJob("transcription", close, file=keys_file("012 " * 200), parts=True)
    with pytest.raises(WorkerCrashed):
        await runtime.run(job)
    runtime.close()
    with pytest.raises(WorkerCrashed):
        await runtime.run(RecordingJob("transcription", file=keys_file("1")))


async def test_numbers_that_are_none_are_no_letters(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(DTMF, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.bias"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="NaN"):
        load(broken)
    runtime = load(DTMF)
    try:
        model = runtime._engine._listener._model  # type: ignore[union-attr]
        model.lm_head.bias.data[0] = torch.nan
        with pytest.raises(RuntimeFailed, match="NaN"):
            await hear(runtime, keys_file("1"))
    finally:
        runtime.close()


def make_ctc(folder: Path, family: str) -> None:
    """Write a model with random weights that spells with the letters A to Z."""
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'"]
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *letters]
    file = folder / "letters.json"
    file.write_text(json.dumps({word: id for id, word in enumerate(words)}))
    small: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": 0,
    }
    if family != "Wav2Vec2Bert":
        small |= {
            "conv_dim": (16, 16, 16),
            "conv_kernel": (10, 3, 3),
            "conv_stride": (5, 8, 8),
            "num_feat_extract_layers": 3,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        }
    extractor: Any = transformers.Wav2Vec2FeatureExtractor()
    if family == "Wav2Vec2Bert":  # it hears a spectrum, not samples
        extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
        small["feature_projection_input_dim"] = 40
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**small)
    getattr(transformers, f"{family}ForCTC")(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    transformers.Wav2Vec2CTCTokenizer(str(file)).save_pretrained(folder)
    file.unlink()


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM", "Wav2Vec2Bert"])
async def test_other_families_are_what_transformers_hears(tmp_path: Path, family: str) -> None:
    make_ctc(tmp_path, family)
    assert describe(ModelSpec("m", str(tmp_path))).kinds == ("transcription",)
    runtime = load(tmp_path)
    try:
        found = await hear(runtime, FILE, words=True)
    finally:
        runtime.close()
    model = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    samples = decode(FILE, RATE)
    with torch.inference_mode():
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt")
        ids = model(**inputs).logits[0].argmax(-1)
    expected = re.sub(r"</?\w+>", "", tokenizer.decode(ids))  # marks are no letters
    assert expected
    assert " ".join(found.text.split()) == " ".join(expected.split())
    words = [word.text for segment in found.segments for word in segment.words or ()]
    assert "".join(words) == "".join(expected.split())


def test_weights_that_are_missing_fail_the_load(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lacking = tmp_path / "lacking"
    shutil.copytree(DTMF, lacking)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadFailed, match="lm_head"):
        load(lacking)


# --- Whisper ---------------------------------------------------------------------------------

LONG = keys_file("0123456789*# " * 6)  # 19 seconds: four windows or more


def features_of(folder: Path, file: bytes) -> Any:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    return extractor(decode(file, RATE), sampling_rate=RATE, return_tensors="pt").input_features


async def test_a_window_is_what_transformers_hears(
    whisper: TranscriptionRuntime, folder: Path
) -> None:
    """Ours must be the tokens of Whisper's own ``generate``, and their probability."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    features = features_of(folder, FILE)
    listener: Any = whisper._engine._listener  # type: ignore[union-attr]
    decoder = listener._decoder
    with torch.inference_mode():
        encoded = model.get_encoder()(features)
    for language, task in (("en", "transcribe"), ("de", "translate")):
        theirs = model.generate(
            features,
            language=language,
            task=task,
            return_timestamps=True,
            max_new_tokens=TOKENS // 2,
            return_dict_in_generate=True,
            output_scores=True,
        )
        prefix = [IDS["<|startoftranscript|>"], IDS[f"<|{language}|>"], IDS[f"<|{task}|>"]]
        ours = decoder.decode(encoded, prefix, (0.0,), 0, lambda found: True, lambda: None)
        result = theirs["segments"][0][0]["result"]
        tokens = result["sequences"].tolist()
        assert tokens[: len(prefix)] == prefix
        tokens = tokens[len(prefix) :]
        assert len(tokens) > 3
        assert ours.tokens == (tokens[:-1] if tokens[-1] == END else tokens)
        chances = [
            float(scores.float().log_softmax(-1)[token])
            for scores, token in zip(result["scores"], tokens, strict=True)
        ]
        assert ours.avg_logprob == pytest.approx(sum(chances) / len(chances), abs=1e-4)


async def test_the_language_is_the_one_that_transformers_detects(
    whisper: TranscriptionRuntime, folder: Path
) -> None:
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    (id,) = model.detect_language(features_of(folder, FILE)).flatten().tolist()
    names = {IDS["<|en|>"]: "english", IDS["<|de|>"]: "german", IDS["<|fr|>"]: "french"}
    assert (await hear(whisper, FILE)).language == names[id]
    assert (await hear(whisper, FILE, kind="translation")).language == "english"
    for given in ("fr", "French", "FR", "fr-CA"):
        assert (await hear(whisper, FILE, language=given)).language == "french"


async def test_an_unknown_language_is_refused(whisper: TranscriptionRuntime) -> None:
    with pytest.raises(InvalidRequest, match="'language'") as caught:
        await hear(whisper, FILE, language="frensh")
    assert caught.value.param == "language"
    assert "french" in caught.value.hint
    with pytest.raises(InvalidRequest) as caught:
        await hear(whisper, FILE, language="ja")  # Whisper knows it; this one does not
    assert "de, en, fr" in caught.value.hint


async def test_a_seed_makes_chance_repeatable(whisper: TranscriptionRuntime) -> None:
    async def tokens(seed: int) -> list[list[int]]:
        found = await hear(whisper, LONG, temperature=0.9, seed=seed, language="en")
        return [segment.tokens for segment in found.segments]

    first = await tokens(3)
    assert await tokens(3) == first
    assert await tokens(4) != first
    assert first


async def test_bad_text_is_tried_again_hotter(whisper: TranscriptionRuntime) -> None:
    """Noise is improbable at every temperature: the last is what was tried last."""
    found = await hear(whisper, FILE, seed=1)
    assert {segment.temperature for segment in found.segments} <= {0.2, 0.4, 0.6, 0.8, 1.0}
    warm = await hear(whisper, FILE, seed=1, temperature=0.3)
    assert {segment.temperature for segment in warm.segments} <= {0.3}


async def test_windows_follow_each_other(whisper: TranscriptionRuntime) -> None:
    job = RecordingJob("transcription", file=LONG, temperature=0.7, seed=0, parts=True)
    whole = transcript_from_wire((await whisper.run(job)).payload)
    heard = [heard_from_wire(part) for part in job.parts]
    assert len(heard) >= 4
    assert [segment for each in heard for segment in each.segments] == whole.segments
    begins = sorted({segment.seek or 0.0 for segment in whole.segments})
    assert all(0 < late - early <= WINDOW for early, late in pairwise(begins))
    assert all(0 <= each.start <= each.end <= whole.duration for each in whole.segments)
    assert heard[-1].done == pytest.approx(whole.duration)
    for segment in whole.segments:
        assert segment.avg_logprob is not None
        assert segment.avg_logprob < 0
        assert segment.no_speech is not None
        assert 0 <= segment.no_speech <= 1
        assert segment.compression is not None


async def test_words_lie_in_their_window(whisper: TranscriptionRuntime) -> None:
    found = await hear(whisper, LONG, temperature=0.9, seed=3, language="en", words=True)
    words = [word for segment in found.segments for word in segment.words or ()]
    assert words
    for segment in found.segments:
        assert segment.words is not None
        assert segment.seek is not None
        for word in segment.words:
            assert segment.seek <= word.start <= word.end <= segment.seek + WINDOW + STEP


async def test_a_prompt_changes_what_is_heard_and_may_not_be_too_long(
    whisper: TranscriptionRuntime,
) -> None:
    plain = await hear(whisper, FILE, language="en", temperature=0.01, seed=0)
    told = await hear(whisper, FILE, language="en", temperature=0.01, seed=0, prompt="Zxq!")
    assert plain.segments != told.segments
    with pytest.raises(ContextTooLong, match="41 tokens") as caught:
        await hear(whisper, FILE, prompt="x" * 40)
    assert caught.value.param == "prompt"
    assert caught.value.details == {"prompt_tokens": 41, "limit": TOKENS // 2 - 1}


async def test_the_longest_prompt_leaves_room_for_words(whisper: TranscriptionRuntime) -> None:
    """Prompt, marks and half a window of words are more than a window."""
    for seed in range(3):
        fields: dict[str, Any] = {
            "temperature": 1.0,
            "seed": seed,
            "prompt": "x" * (TOKENS // 2 - 2),
        }
        found = await hear(whisper, LONG, language="en", **fields)
        assert found.segments


async def test_a_cancel_stops_whisper_within_a_token(whisper: TranscriptionRuntime) -> None:
    job = RecordingJob("transcription", file=LONG, temperature=0.9, seed=0)
    looked = []
    listener: Any = whisper._engine._listener  # type: ignore[union-attr]
    original = listener._decoder.decode

    def decode_and_leave(*given: Any) -> Any:
        *rest, look = given

        def cancelling() -> None:
            looked.append(1)
            if len(looked) == 3:
                job.cancel()
            look()

        return original(*rest, cancelling)

    listener._decoder.decode = decode_and_leave
    try:
        with pytest.raises(Cancelled):
            await whisper.run(job)
    finally:
        del listener._decoder.decode
    assert len(looked) == 3


async def test_a_model_that_knows_english_only(english: TranscriptionRuntime) -> None:
    found = await hear(english, FILE, temperature=0.9, seed=0)
    assert found.language == "english"
    assert found.segments
    assert (await hear(english, FILE, temperature=0.9, seed=0, language="en")) == found
    for kind, fields, param in (
        ("translation", {}, "model"),
        ("transcription", {"language": "de"}, "language"),
        ("transcription", {"words": True}, "timestamp_granularities"),
    ):
        with pytest.raises(BlipError) as caught:
            await hear(english, FILE, kind, **fields)
        assert caught.value.param == param


async def test_whispers_numbers_that_are_none(folder: Path) -> None:
    runtime = load(folder)
    try:
        model = runtime._engine._listener._model  # type: ignore[union-attr]
        model.model.decoder.layer_norm.bias.data[0] = torch.nan
        with pytest.raises(RuntimeFailed, match="NaN"):
            await hear(runtime, FILE)
    finally:
        runtime.close()


async def test_short_and_bad_files(whisper: TranscriptionRuntime) -> None:
    for file in (sound_file(tones("1")[:500]), b"noise", LONG[:-9000]):
        with pytest.raises(InvalidRequest) as caught:
            await hear(whisper, file)
        assert caught.value.param == "file"


def test_what_a_folder_serves(folder: Path, tmp_path: Path) -> None:
    assert describe(ModelSpec("w", str(folder))).kinds == ("transcription", "translation")
    assert describe(ModelSpec("d", str(DTMF))).kinds == ("transcription",)
    make_whisper(tmp_path, several=False)
    assert describe(ModelSpec("e", str(tmp_path))).kinds == ("transcription",)
    (tmp_path / "generation_config.json").unlink()
    assert describe(ModelSpec("e", str(tmp_path))).kinds == ("transcription",)
    with pytest.raises(ModelLoadFailed, match="timestamp"):
        load(tmp_path)


# --- pure parts ------------------------------------------------------------------------------


def stamp(seconds: float) -> int:
    return FIRST_STAMP + round(seconds / STEP)


@pytest.mark.parametrize(
    ("tokens", "pieces", "advance"),
    [
        # two segments, and the window's end in silence
        (
            [stamp(0), 1, stamp(1), stamp(1), 2, 3, stamp(2)],
            [Piece(0, 1, [1]), Piece(1, 2, [2, 3])],
            6,
        ),
        # the last segment was cut by the window's end: it is heard again
        ([stamp(0), 1, stamp(1), stamp(1.5), 2], [Piece(0, 1, [1])], 1.0),
        # ends with a pair: go on from there
        ([stamp(0.5), 1, stamp(2), stamp(2)], [Piece(0.5, 2, [1])], 2),
        # no pair at all: one segment up to its last timestamp, or to the end
        ([stamp(0.5), 1, 2, stamp(3)], [Piece(0.5, 3, [1, 2])], 6),
        ([stamp(0.5), 1, 2], [Piece(0.5, 6, [1, 2])], 6),
        ([1], [Piece(0, 6, [1])], 6),
        # nothing was said
        ([stamp(0)], [], 6),
        ([], [], 6),
        # a pair at the very beginning does not stand still
        ([stamp(0), stamp(0), 1], [], 6),
    ],
)
def test_cutting(tokens: list[int], pieces: list[Piece], advance: float) -> None:
    found = cut(tokens, FIRST_STAMP, STEP, 6.0)
    assert [piece.tokens for piece in found.pieces] == [piece.tokens for piece in pieces]
    for ours, wanted in zip(found.pieces, pieces, strict=True):
        assert ours.start == pytest.approx(wanted.start)
        assert ours.end == pytest.approx(wanted.end)
    assert found.advance == pytest.approx(advance)


def test_no_time_lies_behind_the_end_of_the_sound() -> None:
    found = cut([stamp(0), 1, stamp(5)], FIRST_STAMP, STEP, 2.5)
    assert found.pieces == [Piece(0, 2.5, [1])]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (4, 4), (7, 60), (20, 11)])
def test_warping_is_transformers(shape: tuple[int, int]) -> None:
    costs = numpy.random.default_rng(0).standard_normal(shape)
    tokens, frames = generation_whisper._dynamic_time_warping(costs)
    first = [int(frames[list(tokens).index(token)]) for token in range(shape[0])]
    assert first_frames(costs) == first
