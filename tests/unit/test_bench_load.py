import itertools
import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip.bench.load import AnswerReader, EventReader, Load, Malformed, Sample, Series, Tally

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"
)
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"


def read(reader: AnswerReader, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(reader.feed(data[a:b]) for a, b in itertools.pairwise(edges) if a < b)


@given(
    st.sampled_from(
        [(PLAIN, 200, b"hello"), (CHUNKED, 200, b"abc0123456789"), (REFUSED, 429, b"{}")]
    ),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_answers_are_read_however_they_arrive(
    case: tuple[bytes, int, bytes], cuts: list[int]
) -> None:
    data, status, body = case
    reader = AnswerReader()
    for _ in range(2):  # the second answer comes over the same connection
        assert read(reader, data, cuts) == body
        assert (reader.status, reader.complete) == (status, True)
        reader.expect()
        assert not reader.complete


def test_an_empty_body_is_complete_with_its_head() -> None:
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n") == b""
    assert reader.complete


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "status line"),
        (b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", "neither"),
        (PLAIN + b"!", "more bytes"),
        (CHUNKED + b"!", "after the answer"),
        (CHUNKED.replace(b"A\r\n", b"q\r\n"), "without a size"),
        (CHUNKED.replace(b"A\r\n", b"2\r\n"), "longer than its size"),
    ],
)
def test_malformed_answers_are_named(data: bytes, complaint: str) -> None:
    with pytest.raises(Malformed, match=complaint):
        AnswerReader().feed(data)


def test_bytes_after_an_answer_are_malformed() -> None:
    reader = AnswerReader()
    reader.feed(PLAIN)
    with pytest.raises(Malformed, match="after the answer"):
        reader.feed(b"H")


STREAM = b'data: {"index":0,"text":"1.5"}\n\ndata: {"index":1,"text":"2.25"}\n\ndata: [DONE]\n\n'


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_events_are_counted_however_they_arrive(cuts: list[int]) -> None:
    reader = EventReader()
    edges = [0, *sorted(cuts), len(STREAM)]
    stamps: list[bytes] = []
    for a, b in itertools.pairwise(edges):
        count, found = reader.feed(STREAM[a:b])
        assert count == len(found)
        stamps += found
    assert reader.count == 2
    assert stamps == [b"1.5", b"2.25"]
    assert reader.done


def test_a_stream_that_breaks_off_is_not_done() -> None:
    reader = EventReader()
    reader.feed(b'data: {"index":0,"text":"a"}\n\ndata: {"error":{"code":"node_lost"}}\n\n')
    assert (reader.count, reader.done) == (1, False)
    reader.expect()
    reader.feed(b"data: [DONE]")  # without the empty line that ends an event
    assert (reader.count, reader.done) == (0, False)


def test_heartbeats_and_words_are_no_events() -> None:
    reader = EventReader()
    assert reader.feed(b': still here\n\ndata: {"index":0,"text":"word"}\n\n') == (1, [])


def test_series_grow_and_know_their_quantiles() -> None:
    series = Series(room=2)
    assert series.spread().count == 0
    for value in range(1001):
        series.add(float(1000 - value))
    spread = series.spread()
    assert (spread.count, spread.p50, spread.p99) == (1001, 500.0, 990.0)


def test_a_request_states_its_length_and_headers() -> None:
    load = Load(80, '{"text":"ä"}', 1, 1.0, {"Authorization": "Bearer k"})
    head, _, body = load.request().partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/echo HTTP/1.1\r\n")
    assert b"Authorization: Bearer k" in head
    assert f"Content-Length: {len(body)}".encode() in head


def test_samples_survive_json() -> None:
    tally = Tally()
    tally.latency.add(0.5)
    tally.errors["HTTP 503 no_node"] += 2
    sample = tally.sample(1.0, 0.25)
    assert Sample.from_json(json.dumps(asdict(sample))) == sample
    assert sample.latency.p50 == 0.5
    assert sample.errors == {"HTTP 503 no_node": 2}
