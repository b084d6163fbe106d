"""The wire is frozen: these bytes are what machines out there send and expect."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip.protocol.codec import CONTROL_LIMIT, Sequenced, decode, encode
from blip.protocol.messages import NUMBERS
from tests.vectors import write
from tests.vectors.samples import FOLDER, SAMPLES, SUPERSEDED, parse

ALL = {**SAMPLES, **SUPERSEDED}


def read(name: str) -> list[bytes]:
    return parse((FOLDER / f"{name}.hex").read_text(encoding="ascii"))


@pytest.mark.parametrize("name", ALL)
def test_a_vector_decodes_to_its_sample(name: str) -> None:
    frames = read(name)
    expected = [Sequenced(*pair) for pair in ALL[name]]
    assert decode(frames) == expected
    assert decode([memoryview(frame) for frame in frames]) == expected


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_encodes_to_its_vector(name: str) -> None:
    [frames] = encode(SAMPLES[name], CONTROL_LIMIT)
    assert [bytes(frame).hex() for frame in frames] == [frame.hex() for frame in read(name)]


def test_every_message_type_has_a_vector() -> None:
    held = {type(message) for batch in SAMPLES.values() for _, message in batch}
    assert held == set(NUMBERS)
    named = {cls.__name__.lower() for cls in NUMBERS}
    assert named <= set(SAMPLES), "one file a message type, named after it"


def test_every_file_is_tested_and_no_name_is_used_twice() -> None:
    assert {path.stem for path in FOLDER.glob("*.hex")} == set(ALL)
    assert not set(SAMPLES) & set(SUPERSEDED)


def test_every_field_of_a_sample_says_something() -> None:
    """A field that equals its default would not show that it moved."""
    for name, batch in SAMPLES.items():
        for _, message in batch:
            if name == type(message).__name__.lower():
                for field, default in message._field_defaults.items():
                    assert getattr(message, field) != default, f"{name}.{field}"


def test_the_writer_adds_and_never_overwrites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write.main(FOLDER) == 0
    assert capsys.readouterr().out == ""
    for path in FOLDER.glob("*.hex"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ping.hex").unlink()
    (tmp_path / "pong.hex").write_text("# not ours\n00\n")
    assert write.main(tmp_path) == 1
    out, err = capsys.readouterr()
    assert out == f"wrote {tmp_path / 'ping.hex'}\n"
    assert "pong.hex differs" in err
    assert (tmp_path / "ping.hex").read_text() == (FOLDER / "ping.hex").read_text()
    assert (tmp_path / "pong.hex").read_text() == "# not ours\n00\n"
