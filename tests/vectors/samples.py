"""One message of each type with every field set, and a batch: what the vectors hold.

Never change a sample: its file holds the bytes that machines out there send and expect. When a
message gets a field, its old sample moves to ``SUPERSEDED`` (older peers go on sending those
bytes) and a new one takes its place under a new name.
"""

from __future__ import annotations

from pathlib import Path

from blip.protocol.messages import (
    Accept,
    Advert,
    Cancel,
    Cancelled,
    Credit,
    Data,
    Deny,
    Device,
    Done,
    Fail,
    Goodbye,
    Grant,
    Hello,
    Info,
    Lease,
    Message,
    Model,
    Move,
    NodeEntry,
    Nodes,
    Order,
    Ordered,
    Payload,
    Ping,
    Place,
    PluginKind,
    Pong,
    Recall,
    Refuse,
    Release,
    Replica,
    Running,
    Stats,
    Story,
    Submit,
    Welcome,
    Why,
)

FOLDER = Path(__file__).parent

TASK = bytes.fromhex("00112233445566778899aabbccddeeff")
OTHER = bytes.fromhex("ffeeddccbbaa99887766554433221100")

_ADVERT = Advert(
    42,
    False,
    [
        Device(
            "GPU-1", "nvidia", "RTX 4090", 24 << 30, 20 << 30, 0.5, 61.0, 280.5, 2.5, 3e9, 1.0, 0.25
        ),
        Device(
            "cpu", "cpu", "EPYC 9654", 64 << 30, 48 << 30, None, None, None, 1.0, None, 1.0, 0.0
        ),
    ],
    [Model("llama", ["chat", "completion"], 5 << 30, 4 << 30, 16, 8192, "no such file", 30.0)],
    [Replica("llama", "GPU-1", "loading", 16, 3, 1, 5 << 30, 0.5, 2.25, "")],
    [Running(TASK, 1), Running(OTHER, 300)],
)
_ADVERT_CAPACITY = _ADVERT._replace(
    devices=[
        _ADVERT.devices[0]._replace(
            state="yielding",
            reason="its owner is using it",
            ours=2 << 30,
            foreign=1 << 30,
            reserved=3 << 30,
            metrics={"clock": 2520, "throttle": ["sw_thermal"], "fan": None},
            benchmark={"fp16": 1.5e14, "load": 1.2e10},
        ),
        _ADVERT.devices[1],
    ],
    models=[_ADVERT.models[0]._replace(parameters=8_000_000_000, min_replicas=1, max_replicas=4)],
    replicas=[_ADVERT.replicas[0]._replace(pinned=True, idle=12.5, unload_in=287.5)],
    running=[Running(TASK, 1, False), Running(OTHER, 300, True)],
    labels={"zone": "cellar"},
)
_ADVERT_KINDS = _ADVERT_CAPACITY._replace(
    kinds=[
        PluginKind(
            "wordcount",
            '{"type":"object","properties":{"text":{"type":"string"}}}',
            '{"type":"integer"}',
            "text",
            "Counts words.",
            True,
        )
    ]
)
_ADVERT_ADDITIONS = _ADVERT_KINDS._replace(
    models=[_ADVERT_CAPACITY.models[0]._replace(loras=["ink", "clay"], controlnets=["canny"])]
)
_LARGE = bytes(range(256)) * 32 + b"!"

_PLACE = Place(TASK, 2, "chat", "llama", 128.0, 3, 60.0, "team-a", ["node-2"])


def _nodes(advert: Advert) -> Nodes:
    entry = NodeEntry("node-1", 5, "rig", "boot-1", ["tcp://127.0.0.1:7701"], "ready", advert)
    return Nodes(True, [entry], ["node-2"])


#: Name of the file to ``(sequence number, message)`` pairs.
SAMPLES: dict[str, list[tuple[int, Message]]] = {
    "hello": [
        (
            0,
            Hello(
                "gateway",
                "gw-1",
                1_700_000_000_000,
                1,
                3,
                2,
                "Büro",
                "boot-1",
                ["ipc:///run/blip.sock", "tcp://127.0.0.1:7700"],
                ["resume"],
                [Lease(TASK, 2, "node-1", "GPU-1", "llama", "chat", 128.0, 1.5)],
            ),
        )
    ],
    "welcome": [(0, Welcome(1, "broker-1", 7, 1.0, 3.0, 10.0, 2))],
    "goodbye": [(9, Goodbye("superseded", "a newer process of this node is connected"))],
    "ping": [(1, Ping(1))],
    "pong": [(70_000, Pong(1))],
    "info": [(2, Info({"id": "node-1", "models": ["llama"], "deep": {"yes": True, "no": None}}))],
    "stats": [(3, Stats({"accepted": 12, "load": 0.5}))],
    "advert": [(4, _ADVERT_ADDITIONS)],
    "nodes": [(1, _nodes(_ADVERT_ADDITIONS))],
    "place": [(5, _PLACE._replace(require={"vendor": ["nvidia"], "not": {"node": ["rig"]}}))],
    "grant": [(6, Grant(TASK, 2, "node-1", 5, "GPU-1", 0.25, 3.2, 4.0))],
    "deny": [
        (7, Deny(TASK, 2, "overloaded", "the queue is full", {"retry_after": 2.5, "queue": 1000}))
    ],
    "release": [(8, Release(TASK, 2, "done", 130.0, 3.5, 4.25))],
    "move": [(9, Move(TASK, 2, "node-3", "GPU-2"))],
    "why": [(10, Why(TASK, 2))],
    "story": [(11, Story(TASK, 0, [{"outcome": "grant", "at": 1.5, "considered": []}]))],
    "order": [(12, Order(7, "load", "GPU-1", "llama", {"pin": True, "keep_alive": 300.0}))],
    "ordered": [(13, Ordered(7, "failed", "no_capacity", "it needs 5 GiB", {"need": 5 << 30}))],
    "submit": [(1, Submit(TASK, 2, "chat", "llama", "GPU-1", 59.5, 1 << 20, b"\x81\xa1a\x01"))],
    "accept": [(2, Accept(TASK, 2, 3))],
    "refuse": [(2, Refuse(TASK, 2, "no_memory", "'llama' needs 5,120 MiB", {"need": 5 << 30}))],
    "data": [(3, Data(TASK, 2, 0, b"part"))],
    "credit": [(4, Credit(TASK, 2, 524_288))],
    "done": [
        (
            5,
            Done(
                TASK, 2, 1, {"prompt": 12, "completion": 130}, 130.0, 0.5, 4.25, 0.125, 3.5, b"end"
            ),
        )
    ],
    "fail": [(6, Fail(TASK, 2, "worker_crashed", "the worker ended: signal 9", {"signal": 9}))],
    "cancel": [(7, Cancel(TASK, 2))],
    "cancelled": [(8, Cancelled(TASK, 2))],
    "recall": [(9, Recall(TASK, 2))],
    "batch_with_payload_frames": [
        (10, Data(TASK, 2, 4, _LARGE)),
        (11, Data(OTHER, 1, 0, b"inline")),
        (12, Data(TASK, 2, 5, bytes(reversed(_LARGE)))),
        (13, Ping(2)),
    ],
    "batch_of_sixteen": [(seq, Ping(seq)) for seq in range(250, 266)],
}

#: Samples that this version reads and no longer writes.
SUPERSEDED: dict[str, list[tuple[int, Message]]] = {
    # before capacity was more than free memory (0.1.0's first protocol)
    "advert_without_states": [(4, _ADVERT)],
    "nodes_without_states": [(1, _nodes(_ADVERT))],
    "place_without_require": [(5, _PLACE)],
    # before nodes had kinds of their own
    "advert_without_kinds": [(4, _ADVERT_CAPACITY)],
    "nodes_without_kinds": [(1, _nodes(_ADVERT_CAPACITY))],
    # before models told their LoRAs and ControlNets
    "advert_without_additions": [(4, _ADVERT_KINDS)],
    "nodes_without_additions": [(1, _nodes(_ADVERT_KINDS))],
}

_WIDTH = 48  # bytes a line


def render(title: str, frames: list[Payload]) -> str:
    """Write frames as hex, a blank line between two of them."""
    blocks = []
    for frame in frames:
        text = bytes(frame).hex()
        lines = [text[at : at + 2 * _WIDTH] for at in range(0, len(text), 2 * _WIDTH)]
        blocks.append("\n".join(lines) + "\n")
    return f"# {title}\n" + "\n".join(blocks)


def parse(text: str) -> list[bytes]:
    """Read what :func:`render` wrote."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [bytes.fromhex(block) for block in "\n".join(lines).split("\n\n")]
