"""Messages to frames and back; and whatever else may stand in frames is refused in one way."""

from __future__ import annotations

import struct
import time
import typing
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blip.errors import PayloadTooLarge, RemoteProtocolError
from blip.protocol import codec, messages
from blip.protocol.codec import (
    CONTROL_LIMIT,
    DATA_LIMIT,
    INLINE_LIMIT,
    PREFIX,
    Sequenced,
    Unknown,
    decode,
    encode,
)
from blip.protocol.messages import (
    NUMBERS,
    TYPES,
    Accept,
    Advert,
    Data,
    Deny,
    Device,
    Done,
    Hello,
    Info,
    Message,
    Model,
    Payload,
    Ping,
    Stats,
    Submit,
)
from tests.unit.wire_strategies import FREE, MESSAGES, SEQS, message_of

TASK = bytes(range(16))


def data(payload: Payload) -> Data:
    return Data(TASK, 1, 0, payload)


def raw(*rows: object) -> bytes:
    """A first frame with these headers, whatever they are."""
    packed: bytes = msgpack.packb(list(rows))
    return PREFIX + packed


def row(message: Message, seq: int = 0) -> list[Any]:
    """The header of a message, as lists that can be tampered with."""
    [[frame, *_]] = encode([(seq, message)], CONTROL_LIMIT)
    [header] = msgpack.unpackb(bytes(frame[4:]))
    assert isinstance(header, list)
    return header


def one(*frames: Payload) -> Message:
    """Decode one message."""
    [item] = decode(frames)
    assert isinstance(item, Sequenced)
    return item.message


# --- there and back -------------------------------------------------------------------------


@pytest.mark.parametrize("cls", TYPES.values(), ids=lambda cls: cls.__name__)
def test_every_message_comes_back_as_it_went(cls: type[Message]) -> None:
    @given(message=message_of(cls), seq=SEQS)
    @settings(max_examples=40)
    def there_and_back(message: Message, seq: int) -> None:
        [frames] = encode([(seq, message)], CONTROL_LIMIT)
        [item] = decode(frames)
        assert item == Sequenced(seq, message)
        assert type(item.message) is cls
        assert_types(item.message)

    there_and_back()


def assert_types(value: Any) -> None:
    """Nested tuples come back as their own types, floats as floats: `==` would not tell."""
    hints = typing.get_type_hints(type(value))
    for name, each in zip(value._fields, value, strict=True):
        if hints[name] is float:
            assert type(each) is float
        elif hasattr(hints[name], "_fields"):
            assert type(each) is hints[name]
            assert_types(each)
        elif typing.get_origin(hints[name]) is list:
            [item] = typing.get_args(hints[name])
            for part in each:
                if hasattr(item, "_fields"):
                    assert type(part) is item
                    assert_types(part)


@given(st.lists(st.tuples(SEQS, MESSAGES), max_size=8), st.booleans())
def test_a_batch_keeps_its_order(batch: list[tuple[int, Message]], views: bool) -> None:
    decoded: list[Sequenced | Unknown] = []
    for frames in encode(batch, CONTROL_LIMIT):
        decoded += decode([memoryview(frame) for frame in frames] if views else frames)
    assert decoded == [Sequenced(*pair) for pair in batch]


def test_nothing_is_encoded_as_nothing() -> None:
    assert encode([], CONTROL_LIMIT) == []
    assert decode([raw()]) == []


@given(st.permutations([Ping, Accept, Hello]).map(tuple))
def test_numbers_and_types_are_one_table(order: tuple[type[Message], ...]) -> None:
    for cls in order:
        assert TYPES[NUMBERS[cls]] is cls
    assert set(typing.get_args(Message)) == set(NUMBERS)


# --- payloads -------------------------------------------------------------------------------


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("make", [bytes, memoryview])
def test_payloads_over_the_inline_limit_get_a_frame(excess: int, make: Any) -> None:
    payload = bytes(i % 251 for i in range(INLINE_LIMIT + excess))
    [frames] = encode([(3, data(make(payload)))], CONTROL_LIMIT)
    assert len(frames) == (2 if excess > 0 else 1)
    if excess > 0:
        assert frames[1] is not payload or make is bytes
        assert bytes(frames[1]) == payload
        assert len(frames[0]) < 100
    assert bytes(one(*frames).payload) == payload  # type: ignore[union-attr]


def test_a_framed_payload_is_not_copied() -> None:
    payload = bytes(INLINE_LIMIT + 1)
    [frames] = encode([(0, data(payload))], CONTROL_LIMIT)
    assert frames[1] is payload
    view = memoryview(payload)
    message = one(frames[0], view)
    assert message.payload is view  # type: ignore[union-attr]


def test_payload_frames_follow_in_header_order() -> None:
    large = [bytes([letter]) * (INLINE_LIMIT + 1) for letter in b"abc"]
    batch: list[tuple[int, Message]] = [
        (0, data(large[0])),
        (1, Ping(7)),
        (2, data(b"small")),
        (3, Submit(TASK, 1, "echo", "echo", "cpu", 1.0, 10, large[1])),
        (4, Done(TASK, 1, 3, {"n": 1}, 1.0, 0.0, 0.0, 0.1, 0.2, large[2])),
    ]
    [frames] = encode(batch, CONTROL_LIMIT)
    assert frames[1:] == large
    assert decode(frames) == [Sequenced(*pair) for pair in batch]


@given(st.binary(max_size=30), st.integers(0, 30))
def test_a_payload_may_stand_in_a_frame_at_any_size(payload: bytes, seq: int) -> None:
    """Where the limit lies is the sender's business."""
    frame = raw([NUMBERS[Data], seq, TASK, 1, [0, b""], 1])
    assert one(frame, payload) == data(payload)


# --- limits ---------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 3000), max_size=30),
    st.integers(INLINE_LIMIT, 4 * INLINE_LIMIT),
)
def test_batches_are_split_at_the_limit_and_not_before(sizes: list[int], limit: int) -> None:
    batch = [(seq, data(bytes(size))) for seq, size in enumerate(sizes)]
    packed = [codec.pack(seq, message, limit) for seq, message in batch]
    out = codec.join(packed, limit)
    assert [item for frames in out for item in decode(frames)] == [Sequenced(*p) for p in batch]
    weights = [each.size for each in packed]
    for frames in out:
        taken = len(decode(frames))
        assert sum(weights[:taken]) <= limit
        if taken < len(weights):
            assert sum(weights[: taken + 1]) > limit, "the next one would have fitted"
        weights = weights[taken:]
    assert not weights


def test_framed_payloads_count_towards_the_limit() -> None:
    batch = [(seq, data(bytes(400_000))) for seq in range(5)]
    out = encode(batch, CONTROL_LIMIT)
    assert [len(frames) - 1 for frames in out] == [2, 2, 1]


@pytest.mark.parametrize("limit", [CONTROL_LIMIT, DATA_LIMIT])
def test_a_message_over_the_limit_is_refused_before_it_is_sent(limit: int) -> None:
    overhead = codec.pack(0, data(bytes(INLINE_LIMIT + 1)), limit).size - INLINE_LIMIT - 1
    fits = data(bytes(limit - overhead))
    assert codec.pack(0, fits, limit).size == limit
    with pytest.raises(PayloadTooLarge, match="a Data of") as caught:
        codec.pack(0, data(bytes(limit - overhead + 1)), limit)
    assert caught.value.details == {"size": limit + 1, "limit": limit}
    with pytest.raises(PayloadTooLarge, match=r"a Info of"):
        encode([(0, Ping(1)), (1, Info({"text": "x" * limit}))], limit)


def test_what_we_send_ourselves_can_be_received() -> None:
    """As many headers as one array may have elements, and one more."""
    ping = codec.pack(0, Ping(0), DATA_LIMIT)
    out = codec.join([ping] * (codec.ELEMENTS + 1), DATA_LIMIT)
    assert [len(decode(frames)) for frames in out] == [codec.ELEMENTS, 1]


def test_a_failed_encoding_leaves_nothing_in_the_packer() -> None:
    with pytest.raises(OverflowError):
        encode([(0, Ping(2**70))], CONTROL_LIMIT)
    with pytest.raises(TypeError):
        encode([(0, Info({"what": object()}))], CONTROL_LIMIT)
    assert decode(encode([(5, Ping(1))], CONTROL_LIMIT)[0]) == [Sequenced(5, Ping(1))]


# --- other versions -------------------------------------------------------------------------


@given(MESSAGES, st.lists(FREE, min_size=1, max_size=3))
@settings(max_examples=60)
def test_fields_of_a_newer_version_are_ignored(message: Message, more: list[Any]) -> None:
    header = row(message)
    header[4] += more
    assert one(raw([*header, 0, *more])) == message


def newcomers() -> list[tuple[type[Message], int]]:
    """Messages that have defaults, and how many of their fields have none."""
    return [
        (cls, len(cls._fields) - len(cls._field_defaults))
        for cls in TYPES.values()
        if cls._field_defaults
    ]


@pytest.mark.parametrize(("cls", "required"), newcomers(), ids=lambda v: getattr(v, "__name__", ""))
def test_fields_that_an_older_version_lacks_get_their_defaults(
    cls: type[Message], required: int
) -> None:
    @given(message_of(cls))
    @settings(max_examples=5)
    def shorter(message: Message) -> None:
        header = row(message)
        inner = required - 2 if cls._fields[0] == "task" else required
        header[4] = header[4][:inner]
        expected = cls(*message[:required])
        assert one(raw(header)) == expected
        header[4] = header[4][: inner - 1]
        if inner:
            with pytest.raises(RemoteProtocolError, match=f"{cls.__name__} needs {required}"):
                decode([raw(header)])

    shorter()


def test_what_tuples_are_made_of_grows_the_same_way() -> None:
    device = ["cpu", "cpu", "AMD EPYC", 8, 4]
    header = row(Advert(1, False, [], [], [], []))
    whole = list(Device("cpu", "cpu", "AMD EPYC", 8, 4, 0.5, None, 65))
    header[4][2] = [device, [*whole, "new", "newer"]]
    message = one(raw(header))
    assert isinstance(message, Advert)
    short, long = message.devices
    assert short == Device("cpu", "cpu", "AMD EPYC", 8, 4)
    assert long == Device("cpu", "cpu", "AMD EPYC", 8, 4, 0.5, None, 65.0)
    assert type(long.power) is float


@pytest.mark.parametrize("task", [b"", TASK])
def test_unknown_types_are_passed_on_with_their_frames(task: bytes) -> None:
    frame = raw(
        [4, 0, b"", 0, [1]],
        [200, 1, task, 9, [{"any": b"thing"}, float("nan")], 1],
        [NUMBERS[Data], 2, TASK, 1, [0, b""], 1],
        [201, 3, b"short", 0, []],
    )
    assert decode([frame, b"theirs", b"ours"]) == [
        Sequenced(0, Ping(1)),
        Unknown(1, 200, task, 9),
        Sequenced(2, data(b"ours")),
        Unknown(3, 201, b"short", 0),
    ]


def test_a_new_field_may_stand_behind_a_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """New fields go to the end; a payload is found by its name, not by being last."""
    places = {Submit: 5, Data: 1, Done: 7}
    assert places == codec._PAYLOAD_AT
    large = bytes(INLINE_LIMIT + 1)

    class NewerData(typing.NamedTuple):
        task: bytes
        attempt: int
        part: int
        payload: Payload
        final: bool = False

    monkeypatch.setattr(codec, "NUMBERS", {NewerData: NUMBERS[Data]})
    monkeypatch.setattr(codec, "_PAYLOAD_AT", {**places, NewerData: 1})
    newer = NewerData(TASK, 1, 4, large, True)
    [frames] = encode([(0, newer)], CONTROL_LIMIT)  # type: ignore[list-item]
    assert one(*frames) == Data(TASK, 1, 4, large)


# --- hostile bytes --------------------------------------------------------------------------


def refuse(*frames: Payload) -> str:
    """Decoding must raise its one error; returns what it says."""
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frames)
    return caught.value.message


@given(st.lists(st.binary(max_size=200), max_size=4), st.booleans())
def test_random_frames(frames: list[bytes], prefixed: bool) -> None:
    if prefixed and frames:
        frames[0] = PREFIX + frames[0]
    attempt(frames)
    attempt([memoryview(frame) for frame in frames])


def attempt(frames: Sequence[Payload]) -> None:
    """Decode; raise anything but the one error that is allowed."""
    try:
        decode(frames)
    except RemoteProtocolError:
        pass


FREE_MSGPACK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34 - 1)),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(FREE_MSGPACK, st.lists(st.binary(max_size=10), max_size=3))
def test_random_msgpack(value: Any, frames: list[bytes]) -> None:
    attempt([PREFIX + msgpack.packb(value, strict_types=False, unicode_errors="replace"), *frames])
    attempt([PREFIX + msgpack.packb([value], unicode_errors="replace"), *frames])


@given(
    st.lists(st.tuples(SEQS, MESSAGES), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from(["change", "cut", "insert"]),
)
@settings(max_examples=150)
def test_mutated_messages(
    batch: list[tuple[int, Message]], edits: list[tuple[int, int]], how: str
) -> None:
    [frames] = encode(batch, CONTROL_LIMIT)
    head = bytearray(frames[0])
    for at, byte in edits:
        at %= len(head) or 1
        if how == "change":
            head[at] = byte
        elif how == "cut":
            del head[at:]
        else:
            head.insert(at, byte)
        if not head:
            break
    attempt([bytes(head), *frames[1:]])


@given(MESSAGES, st.data())
@settings(max_examples=150)
def test_fields_of_the_wrong_type(message: Message, draw: st.DataObject) -> None:
    """Swap one field for something else; what decodes still has the right types."""
    header = row(message)
    if not header[4]:
        return
    at = draw.draw(st.integers(0, len(header[4]) - 1))
    header[4][at] = draw.draw(FREE_MSGPACK)
    try:
        [item] = decode([PREFIX + msgpack.packb([header], unicode_errors="replace")])
    except RemoteProtocolError:
        return
    assert isinstance(item, Sequenced)
    assert_types(item.message)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"BLP"],
        [b"BLP\x02\x90"],
        [b"HTTP"],
        [b"blp\x01\x90"],
        [PREFIX],
        [PREFIX + b"\x90\x90"],
        [PREFIX + b"\xc1"],
        [PREFIX + b"\x80"],
        [PREFIX + b"\x01"],
        [PREFIX + b"\xc0"],
        [raw(), b""],
    ],
    ids=repr,
)
def test_not_an_array_of_headers(frames: list[bytes]) -> None:
    refuse(*frames)


PING = NUMBERS[Ping]
DATA = NUMBERS[Data]
STATS = NUMBERS[Stats]


@pytest.mark.parametrize(
    "header",
    [
        None,
        1,
        "abcde",
        b"abcde",
        {},
        {"a": 1},
        [],
        [PING, 0, b"", 0],
        [PING, -1, b"", 0, [1]],
        [PING, 1.0, b"", 0, [1]],
        [PING, True, b"", 0, [1]],
        [True, 0, b"", 0, [1]],
        ["4", 0, b"", 0, [1]],
        [PING, 0, "", 0, [1]],
        [PING, 0, None, 0, [1]],
        [PING, 0, b"", -1, [1]],
        [PING, 0, b"", False, [1]],
        [PING, 0, b"", 0, []],
        [PING, 0, b"", 0, None],
        [PING, 0, b"", 0, {"nonce": 1}],
        [PING, 0, b"", 0, [True]],
        [PING, 0, b"", 0, [1.0]],
        [PING, 0, b"", 0, ["1"]],
        [DATA, 0, b"", 1, [0, b""]],
        [DATA, 0, TASK[:-1], 1, [0, b""]],
        [DATA, 0, TASK + b"x", 1, [0, b""]],
        [DATA, 0, TASK, 1, [0]],
        [DATA, 0, TASK, 1, [0, "text"]],
        [DATA, 0, TASK, 1, [0, None]],
        [DATA, 0, TASK, 1, "01"],
        [NUMBERS[Deny], 0, TASK, 1, "ab"],
        [NUMBERS[Deny], 0, TASK, 1, ["busy", "text", []]],
        [200, 0, b"", 0, None],
    ],
    ids=repr,
)
def test_malformed_headers(header: object) -> None:
    assert "malformed header" in refuse(raw(header))
    assert "malformed header" in refuse(raw([PING, 0, b"", 0, [1]], header))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value: float) -> None:
    place = row(messages.Place(TASK, 1, "echo", "echo", 1.0))
    place[4][2] = value
    assert "finite" in refuse(raw(place))
    assert "finite" in refuse(raw([STATS, 0, b"", 0, [{"load": value}]]))
    assert "finite" in refuse(raw([STATS, 0, b"", 0, [{"load": [{"deep": value}]}]]))
    advert = row(Advert(1, False, [Device("gpu", "nvidia", "x", 1, 1)], [], [], []))
    advert[4][2][0][5] = value
    assert "finite" in refuse(raw(advert))


def test_integers_stand_for_floats_and_nothing_else_does() -> None:
    place = row(messages.Place(TASK, 1, "echo", "echo", 1.0))
    place[4][2] = 3
    message = one(raw(place))
    assert isinstance(message, messages.Place)
    assert message.units == 3.0
    assert type(message.units) is float
    for wrong in (True, "3", b"3", None, [3.0]):
        place[4][2] = wrong
        refuse(raw(place))


def test_counts_in_a_map_are_counts() -> None:
    done = row(Done(TASK, 1, 0, {"prompt": 3}, 1.0, 0.0, 0.0, 0.0, 0.0, b""))
    for wrong in ("3", 3.0, True, None, b"", [3]):
        done[4][1] = {"prompt": 3, "completion": wrong}
        refuse(raw(done))
    done[4][1] = {b"prompt": 3}
    refuse(raw(done))


@pytest.mark.parametrize(
    "value",
    [b"bytes", msgpack.ExtType(5, b"x"), msgpack.Timestamp(0, 0), {b"key": 1}, [b""], {"k": b""}],
    ids=repr,
)
def test_free_form_fields_hold_what_json_can_say(value: object) -> None:
    """Details end in an HTTP answer: what JSON cannot say must not get that far."""
    refuse(raw([STATS, 0, b"", 0, [{"it": value}]]))
    refuse(raw([NUMBERS[Deny], 0, TASK, 1, ["busy", "text", {"it": value}]]))


def test_free_form_fields_may_nest_but_not_for_ever() -> None:
    def nested(depth: int) -> object:
        value: object = 1
        for level in range(depth):
            value = [value] if level % 2 else {"in": value}
        return value

    message = one(raw([STATS, 0, b"", 0, [{"it": nested(codec.DEPTH)}]]))
    assert message == Stats({"it": nested(codec.DEPTH)})
    assert "deep" in refuse(raw([STATS, 0, b"", 0, [{"it": nested(codec.DEPTH + 1)}]]))
    # deep enough to exhaust Python's stack, not deep enough for msgpack to notice
    assert "deep" in refuse(raw([STATS, 0, b"", 0, [{"it": nested(900)}]]))
    refuse(PREFIX + b"\x91" * 100_000)
    refuse(PREFIX + b"\x81\xa1a" * 100_000)


def test_strings_are_utf8() -> None:
    header = row(messages.Goodbye("code", "text"))
    frame = raw(header).replace(b"text", b"te\xff\xfe")
    assert "utf-8" in refuse(frame)
    surrogate = raw(header).replace(b"\xa4text", b"\xa3\xed\xa0\x80")
    assert "utf-8" in refuse(surrogate)


@pytest.mark.parametrize("opening", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"])
@pytest.mark.parametrize("length", [2**16, 2**20, 2**31, 2**32 - 1])
def test_declared_lengths_are_not_believed(opening: bytes, length: int) -> None:
    refuse(PREFIX + opening + struct.pack(">I", length))
    refuse(PREFIX + b"\x91" + opening + struct.pack(">I", length) + b"\x00" * 100)


def test_nested_lengths_do_not_multiply() -> None:
    """A few kilobytes must not buy seconds: a thousand nested arrays, each of all that is left."""
    evil = PREFIX + (b"\xdc\xff\xff" * 1000)
    started = time.process_time()
    refuse(evil)
    assert time.process_time() - started < 5  # 0.05 s here; 8 GB and minutes if believed


@pytest.mark.parametrize("surplus", [1, 3])
def test_surplus_and_missing_frames(surplus: int) -> None:
    large = bytes(INLINE_LIMIT + 1)
    [frames] = encode([(0, data(large)), (1, data(large))], CONTROL_LIMIT)
    assert len(frames) == 3
    assert f"{surplus} frames belong to no header" in refuse(*frames, *[b"x"] * surplus)
    refuse(*frames[:2])
    refuse(frames[0])


@pytest.mark.parametrize("marker", [0, 2, None, True, 1.0, "1", [1]])
def test_only_the_number_one_announces_a_frame(marker: object) -> None:
    """Other values of the sixth element are for later versions."""
    header = [DATA, 0, TASK, 1, [0, b"inline"], marker]
    assert one(raw(header)) == data(b"inline")
    assert "belong to no header" in refuse(raw(header), b"frame")


def test_a_frame_where_no_payload_belongs() -> None:
    assert "none belongs" in refuse(raw([PING, 0, b"", 0, [1], 1]), b"frame")
    assert "none belongs" in refuse(raw([NUMBERS[Accept], 0, TASK, 1, [0], 1]), b"frame")


@example(b"")
@given(st.binary(max_size=40))
def test_one_bad_header_spoils_the_message(tail: bytes) -> None:
    """Nothing of a message is delivered if part of it cannot be read."""
    frame = raw([PING, 0, b"", 0, [1]], [PING, 1, b"", 0, tail])
    refuse(frame)


def test_optional_fields_may_be_none_and_others_not() -> None:
    model = Model("m", ["chat"], context=None)
    header = row(Advert(1, False, [], [model], [], []))
    assert one(raw(header)) == Advert(1, False, [], [model], [], [])
    header[4][3][0][0] = None
    refuse(raw(header))
    header = row(Advert(1, False, [], [model], [], []))
    header[4][3][0][5] = 4096.0
    refuse(raw(header))
