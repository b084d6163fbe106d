"""The settings themselves: one model a section, a description on every field.

Values are strict (``port = "80"`` is an error, not a port) and frozen. The descriptions are what
docs/configuration.md and ``blip config show --help`` print.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)


def _folder(variable: str, fallback: str) -> Path:
    """Return blip's folder below an XDG base directory (freedesktop.org's basedir spec)."""
    base = os.environ.get(variable, "")
    # the specification says that a relative path there is to be ignored
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "blip"


def default_state_dir() -> Path:
    """What a machine may lose without losing work: sockets, logs, the embedded store's files."""
    return _folder("XDG_STATE_HOME", ".local/state")


def default_data_dir() -> Path:
    """What is expensive to make or fetch again: models."""
    return _folder("XDG_DATA_HOME", ".local/share")


def default_config_file() -> Path:
    """The user's own configuration file, which need not exist."""
    return _folder("XDG_CONFIG_HOME", ".config") / "blip.toml"


def _absolute(value: Path) -> Path:
    return value.expanduser().absolute()


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("expected a folder; leave the key out for the default")
    return value


_ENDPOINT = re.compile(r"tcp://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.*-]+):(?:\*|\d{1,5})|ipc://.+")


def _mesh_id(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value):
        raise ValueError("expected at most 63 lower-case letters, digits, '-' and '_'")
    return value


def _store_url(value: str) -> str:
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected a URL that begins with redis://, rediss:// or unix://")
    return value


def _size(value: Any) -> Any:
    try:
        return TypeAdapter(ByteSize).validate_python(value)
    except ValidationError:
        raise ValueError('expected a size in bytes, or text such as "8MiB"') from None


def _endpoint(value: str) -> str:
    if not _ENDPOINT.fullmatch(value):
        raise ValueError("expected an endpoint such as 'tcp://127.0.0.1:7411' or 'ipc:///path'")
    port = value.rpartition(":")[2]
    if value.startswith("tcp://") and port != "*" and int(port) > 65535:
        raise ValueError(f"port {port} is over 65535")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(
            "expected the key's sha256 as 64 lower-case hex digits (`blip key new` prints it)"
        )
    return value


def _engine_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a base URL such as 'http://127.0.0.1:8000/v1'")
    if parts.username is not None or parts.query or parts.fragment:
        # the file may be read by others; and requests append their own path
        raise ValueError(
            "expected a base URL without a password, a query or a fragment; "
            "api_key_env names the variable that holds a key"
        )
    return value.rstrip("/")


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("expected a URL such as 'https://blip.example.com'")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("expected a URL without a password, a query or a fragment")
    return value.rstrip("/")


def _variable(value: str) -> str:
    # capitals only: a key is seldom that, and whoever writes one here by mistake should hear it
    if value and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        raise ValueError(
            "expected the name of an environment variable, in capitals, not the key itself"
        )
    return value


def _short_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("expected at most 63 letters, digits, '.', '-' and '_' as a name")
    return value


#: A folder; ``~`` is the home folder, relative paths start at the working directory.
Folder = Annotated[
    Path, Field(strict=False), BeforeValidator(_not_empty), AfterValidator(_absolute)
]
#: Bytes; from a number, or text with a unit.
Size = Annotated[ByteSize, BeforeValidator(_size)]
#: A ZeroMQ endpoint; ``*`` as its port lets the system choose one.
Endpoint = Annotated[str, AfterValidator(_endpoint)]
#: The hash of an API key. The keys themselves are never stored.
KeyHash = Annotated[str, AfterValidator(_sha256)]
#: A duration in seconds.
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


#: A share, relative to others.
Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


#: A share of one.
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values are strict and cannot change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MeshConfig(Section):
    """The mesh this machine belongs to."""

    id: Annotated[str, AfterValidator(_mesh_id)] = Field(
        default="default",
        description="Name of the mesh. Roles with different names do not see each other.",
    )
    state_dir: Folder = Field(
        default_factory=default_state_dir,
        description="Folder for sockets, logs and the embedded store's files.",
    )


class StoreConfig(Section):
    """Redis or Valkey: discovery and results. No synchronous request waits for it."""

    url: Annotated[str, AfterValidator(_store_url)] = Field(
        default="",
        description="URL of the server (redis://, rediss://, unix://). Empty: an embedded one in "
        "mesh.state_dir is started or adopted.",
        json_schema_extra={"secret": "url"},
    )


class BrokerConfig(Section):
    """The role that knows the nodes and places tasks."""

    bind: Endpoint = Field(
        default="tcp://127.0.0.1:7411", description="Where nodes and gateways connect to."
    )
    ipc: bool = Field(
        default=True,
        description="Also listen on a Unix socket below mesh.state_dir, for roles on this machine.",
    )
    queue_limit: int = Field(
        default=1024,
        ge=0,
        description="Tasks that may wait for a device before new ones get a 429.",
    )
    tenants: dict[str, Weight] = Field(
        default_factory=dict,
        description="Shares of busy devices by API key: name = weight. Others weigh 1.",
    )
    heartbeat: Seconds = Field(
        default=1.0, description="Seconds between two signs of life on a link."
    )
    suspect_after: Seconds = Field(
        default=3.0, description="Seconds of silence after which a node gets no new tasks."
    )
    lost_after: Seconds = Field(
        default=10.0, description="Seconds of silence after which a node's tasks are placed again."
    )

    @model_validator(mode="after")
    def _order(self) -> BrokerConfig:
        if not self.heartbeat < self.suspect_after < self.lost_after:
            raise ValueError(
                "heartbeat, suspect_after and lost_after must grow in this order; they are "
                f"{self.heartbeat:g}, {self.suspect_after:g} and {self.lost_after:g}"
            )
        return self


class GatewayConfig(Section):
    """The role that clients talk to over HTTP."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. A public one needs api_keys.",
    )
    port: int = Field(
        default=8001, ge=0, le=65535, description="Port to listen on; 0 lets the system choose."
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="Gateway processes that share the port."
    )
    api_keys: dict[str, KeyHash] = Field(
        default_factory=dict,
        description="Accepted API keys: name = sha256 of the key in hex; `blip key new NAME` "
        "makes both. None: every client on this machine is let in.",
        json_schema_extra={"secret": "map"},
    )
    body_limit: Size = Field(
        default=ByteSize(32 * 1024 * 1024),
        gt=0,
        description='Largest request body, in bytes or as "8MiB"; a larger one gets a 413.',
    )
    request_timeout: Seconds = Field(
        default=600.0,
        description="Seconds until a request fails with a 504, queueing and loading included.",
    )
    brokers: list[Endpoint] = Field(
        default_factory=list,
        description="Brokers to connect to. Empty: those that the store knows, else broker.bind.",
    )
    results_bytes: Size = Field(
        default=ByteSize(128 * 1024 * 1024),
        gt=0,
        description="Most bytes of results kept to be fetched; beyond, the oldest go.",
    )
    results_count: int = Field(default=1000, ge=1, le=100_000, description="Most such results.")
    results_seconds: Seconds = Field(
        default=3600.0,
        le=30 * 86400.0,
        description="How long a result can be fetched, and its address is good.",
    )
    results_url: Annotated[str, AfterValidator(_origin)] = Field(
        default="",
        description="What the addresses of results begin with, `https://blip.example.com`. Empty: "
        "the host that the request was sent to.",
    )
    video_jobs: int = Field(
        default=8, ge=1, description="Videos that one API key may have unfinished."
    )
    video_timeout: Seconds = Field(
        default=3600.0, description="Seconds until a video fails, queueing and loading included."
    )
    moderation_model: str = Field(
        default="",
        description="Model that judges texts where a request to /v1/moderations names none, and "
        "for policies.",
    )
    moderation_image_model: str = Field(
        default="", description="The same for pictures: an image classifier that moderates."
    )


class StaticDevice(Section):
    """A device that the hardware cannot be asked about; blip believes what is written here."""

    id: str = Field(min_length=1, description="Identifies the device on its node.")
    name: str = Field(min_length=1, description="Display name.")
    memory: Size | None = Field(
        default=None, gt=0, description='Memory for models, in bytes or as "24GiB".'
    )
    speed: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Speed relative to other devices; unset: that of the node.",
    )


class NodeConfig(Section):
    """The role that runs models on this machine."""

    name: str = Field(
        default="",
        max_length=64,
        description="Display name of the node. Empty: the machine's host name.",
    )
    bind: Endpoint = Field(
        default="tcp://127.0.0.1:*", description="Where gateways and other nodes connect to."
    )
    data_dir: Folder = Field(
        default_factory=default_data_dir, description="Folder for models in the form blip serves."
    )
    brokers: list[Endpoint] = Field(
        default_factory=list,
        description="Brokers to connect to. Empty: those that the store knows, else broker.bind.",
    )
    nvml: bool = Field(default=True, description="Offer the NVIDIA GPUs that NVML reports.")
    amd: bool = Field(
        default=True, description="Offer the AMD GPUs that amdsmi reports, where it is installed."
    )
    cpu: Literal["auto", "on", "off"] = Field(
        default="auto", description="Offer the CPU as a device; auto: only where there is no GPU."
    )
    devices: list[StaticDevice] = Field(
        default_factory=list,
        description="Devices to offer besides those found: id, name, memory, speed.",
    )
    find_models: bool = Field(
        default=True,
        description="Offer the models found in the Hugging Face cache of this machine, and the "
        "plugins of installed packages.",
    )
    downloads: bool = Field(
        default=False, description="Allow this node to download models that are not on its disk."
    )
    speed: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Speed of this node relative to others, until the broker has measured it.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Free-form facts about the node that tasks may ask for, such as zone = "
        '"cellar"; `blip status` shows them.',
    )
    benchmark: bool = Field(
        default=True,
        description="Measure each device once, some seconds at the first start, and rank devices "
        "by that.",
    )
    neighbour: Literal["auto", "off", "polite", "strict"] = Field(
        default="auto",
        description="When its owner uses a device: off shares it; polite takes nothing new and "
        "frees idle models; strict also stops what runs, which goes on elsewhere. auto: polite "
        "where a display is attached, else off.",
    )
    neighbour_memory: Size = Field(
        default=ByteSize(1024**3),
        description="Device memory of other programs from which on the owner is using it.",
    )
    neighbour_utilization: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="Utilisation, 0 to 1, by other programs from which on the owner is using it.",
    )
    schedule: list[str] = Field(
        default_factory=list,
        description='When the owner uses this machine whatever is measured, such as "mon-fri '
        '09:00-18:00", in local time.',
    )


class ModelConfig(Section):
    """A model that nodes started with this configuration offer."""

    source: str = Field(
        min_length=1,
        description="Where its files are: a folder, a .gguf or .onnx file (beside this file, or "
        "from the working directory), `hf:org/name[@revision]`, `package:distribution[/path]` for "
        "weights that an installed Python package ships, `openai:UPSTREAM/model` for one of an "
        "engine in `[upstreams]`, `plugin:NAME`, `plugin:module:Class` or `plugin:file.py:Class` "
        "for a kind of your own, or `builtin:echo`.",
    )
    kinds: list[str] = Field(
        default_factory=list, description="What it is for. Empty: what its files say."
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        description="Requests that one replica runs at a time; unset: the runtime's choice.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Number format of the weights; auto: the files' own where the device has it.",
    )
    context: int | None = Field(
        default=None, ge=1, description="Context window in tokens; unset: the model's own."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads a replica may use; unset: shared out among replicas.",
    )
    preload: bool = Field(
        default=False, description="Load it when the node starts, not at the first request."
    )
    keep_alive: Seconds | None = Field(
        default=None,
        description="Seconds without work after which it is unloaded; unset: when its room is "
        "needed.",
    )
    pin: bool = Field(default=False, description="Never unload it to make room for others.")
    runtime: Literal["transformers", "llama.cpp"] = Field(
        default="transformers",
        description="Who computes it. llama.cpp takes .gguf files as they are, quantised, and "
        "needs the extra `llama`; transformers converts them once.",
    )
    quantization: Literal["none", "auto", "int8", "int4"] = Field(
        default="none",
        description="Fewer bits a weight, made when it is loaded: int8 needs torchao or "
        "bitsandbytes, int4 (NF4) bitsandbytes and a GPU. auto: as much as it takes to fit.",
    )
    offload: Literal["auto", "none", "model", "group"] = Field(
        default="auto",
        description="Of pipelines: keep in the machine's memory what is not needed at the moment, "
        "by components (model) or blocks (group). auto: only where it would not fit otherwise.",
    )
    vae_tiling: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Of pipelines: decode large pictures in tiles. auto: where memory is short.",
    )
    attention_slicing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Of pipelines: compute attention in slices. auto: where memory is short.",
    )
    compile: bool = Field(
        default=False,
        description="Of pipelines: compile the denoiser with torch.compile; the first picture of "
        "each size takes minutes.",
    )
    min_replicas: int = Field(
        default=0, ge=0, description="Replicas that the mesh keeps loaded at all times."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="The most replicas that the mesh loads; unset: no limit."
    )
    loras: dict[Annotated[str, AfterValidator(_short_name)], str] = Field(
        default_factory=dict,
        description="LoRAs of an image model that requests may name: name = a .safetensors file, a "
        "folder with one, or `hf:org/name[@revision]`.",
    )
    controlnets: dict[Annotated[str, AfterValidator(_short_name)], str] = Field(
        default_factory=dict,
        description="ControlNets of an image model by the sort of map they follow (canny, depth, "
        "...): name = a folder, or `hf:org/name[@revision]`.",
    )

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Of a moderation model: the category that each of its labels means, "
        '`toxic = "harassment"`; "" where it means that nothing is wrong.',
    )
    thresholds: dict[str, Share] = Field(
        default_factory=dict,
        description="Of a moderation model: the score from which on a category is flagged; 0.5 "
        "unless named.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What a plugin is told when it is loaded."
    )

    @model_validator(mode="after")
    def _bounds(self) -> ModelConfig:
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})"
            )
        return self


class UpstreamConfig(Section):
    """An engine that runs already and speaks OpenAI's API; nodes offer its models as their own."""

    url: Annotated[str, AfterValidator(_engine_url)] = Field(
        description="Base URL of its API, with the version: `http://127.0.0.1:8000/v1`.",
        json_schema_extra={"secret": "url"},
    )
    api_key_env: Annotated[str, AfterValidator(_variable)] = Field(
        default="",
        description="Name of the environment variable, of the node, that holds the engine's API "
        "key; never the key itself. Empty: it needs none.",
        # what is wrong here may be a key
        json_schema_extra={"secret": "url"},
    )
    models: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description='Which of its models to offer: ids, or patterns such as "llama*". Empty: all.',
    )
    prefix: str = Field(
        default="",
        max_length=64,
        description="Put before the engine's model ids to make names, so that two engines with one "
        "model do not clash.",
    )
    slots: int = Field(
        default=16,
        ge=1,
        description="Requests that each of its models gets from this node at a time, for each "
        "device of the node that hosts it.",
    )
    kinds: list[str] = Field(
        default_factory=list,
        description="What its models are for. Empty: what the engine says, else embedding where "
        "the id says so, else chat and completion.",
    )
    timeout: Seconds = Field(
        default=120.0,
        description="Seconds without a byte from the engine after which a request to it fails.",
    )
    health_interval: Seconds = Field(
        default=5.0, description="Seconds between two looks at the engine's list of models."
    )


class PolicyConfig(Section):
    """What the holders of some API keys may ask for; see docs/safety.md."""

    keys: list[str] = Field(
        default_factory=list,
        description="Names of the API keys that it is for. Empty: all that no other policy names, "
        "and requests without a key.",
    )
    kinds: list[str] = Field(
        default_factory=list,
        description='Kinds of task that they may use, or patterns such as "im*". Empty: all.',
    )
    models: list[str] = Field(
        default_factory=list,
        description="Models that they may use, or patterns. Empty: all.",
    )
    prompts: bool = Field(
        default=True,
        description="Have gateway.moderation_model judge what a picture is to be of before it is "
        "made.",
    )
    pictures: bool = Field(
        default=False,
        description="Have gateway.moderation_image_model judge pictures that are sent in or made.",
    )
    block: list[str] = Field(
        default_factory=list,
        description="Categories that are refused. Empty: all that the model flags.",
    )
    allow: list[str] = Field(
        default_factory=list, description="Categories that are not refused, whatever is flagged."
    )
    thresholds: dict[str, Share] = Field(
        default_factory=dict,
        description="The score from which on a category is refused, in place of the model's own.",
    )
    words: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Words and phrases that what a picture is to be of may not have in it.",
    )


class LogConfig(Section):
    """What the roles write to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least important level to write."
    )
    format: Literal["text", "json"] = Field(
        default="text", description="One line of text or of JSON."
    )


class Config(Section):
    """All settings; what every role's ``main`` takes."""

    mesh: MeshConfig = Field(default_factory=MeshConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)
    broker: BrokerConfig = Field(default_factory=BrokerConfig)
    gateway: GatewayConfig = Field(default_factory=GatewayConfig)
    node: NodeConfig = Field(default_factory=NodeConfig)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    upstreams: dict[Annotated[str, AfterValidator(_short_name)], UpstreamConfig] = Field(
        default_factory=dict
    )
    policies: dict[str, PolicyConfig] = Field(default_factory=dict)
    log: LogConfig = Field(default_factory=LogConfig)
