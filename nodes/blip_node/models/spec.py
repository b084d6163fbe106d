"""How a model is named in configuration: a name, and where its files come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.errors import ConfigError
from blip.kinds import KINDS
from blip_node.models.means import AUTO, CHOICES, Means
from blip_node.upstreams.engine import Engine

#: What ``dtype`` may be; ``auto`` is explained at :func:`blip_node.models.weights.load_dtype`.
DTYPES = ("auto", "float32", "bfloat16", "float16")

#: Who can compute a model of text.
RUNTIMES = ("transformers", "llama.cpp")

#: Long enough for any repository or path, short enough to print.
MAX_NAME = 200

#: ``org/name``, or a bare ``name`` as the hub's oldest models have it.
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
#: What PEP 508 calls a name.
_DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
#: As the configuration's ``[upstreams.NAME]`` has it; what follows it may be anything.
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: An entry point's name; or a module or a file, and a class in it.
_PLUGIN = re.compile(r"[A-Za-z0-9][\w.-]*|[^:\x00]+:[A-Za-z_]\w*")
_SCHEME = re.compile(r"([a-z]+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Local:
    """A folder that ``from_pretrained`` accepts, or a single ``.gguf`` or ``.onnx`` file."""

    path: Path


@dataclass(frozen=True, slots=True)
class Hub:
    """A Hugging Face repository at a revision (a branch, a tag or a commit)."""

    repo: str
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class Package:
    """Weights inside an installed Python distribution, at ``inside`` or wherever they are.

    ``others`` are distributions with further parts of the same model.
    """

    distribution: str
    inside: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Builtin:
    """A kind that needs no model; the only one is ``echo``."""

    name: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model of an engine that runs already: ``[upstreams.ENGINE]``, and the id it has there."""

    engine: str
    model: str


@dataclass(frozen=True, slots=True)
class Plugin:
    """A kind of somebody's own: see :func:`blip_node.plugins.place.find_class`."""

    place: str


Source = Local | Hub | Package | Builtin | Upstream | Plugin

#: Sources without files: nothing to prepare, and, unless a plugin says so, nothing on any device.
Fileless = Builtin | Upstream | Plugin


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that a node offers, as configured or as found.

    ``kinds`` restricts what it serves (None: all that its files allow), ``slots`` how many tasks
    a replica runs at once (None: the node decides), ``context`` its window in tokens (None: the
    model's own), ``threads`` torch's CPU threads (None: torch decides), ``keep_alive`` the seconds
    without work until it is unloaded (None: when its room is needed), ``pin`` whether it stays
    even then, ``min_replicas`` and ``max_replicas`` what the whole mesh should load, ``means``
    how it is made to fit, ``runtime`` who computes it (one of :data:`RUNTIMES`). ``engine`` is who
    answers for an upstream's model. ``loras`` and ``controlnets`` are names and sources of what an
    image model may be used with; see :mod:`blip_node.models.additions`. ``options`` are for a
    plugin, ``labels`` and ``thresholds`` for moderation.

    Raises :class:`~blip.errors.ConfigError` naming the field.
    """

    name: str
    source: str
    kinds: tuple[str, ...] | None = None
    slots: int | None = None
    dtype: str = "auto"
    context: int | None = None
    threads: int | None = None
    keep_alive: float | None = None
    pin: bool = False
    min_replicas: int = 0
    max_replicas: int | None = None
    engine: Engine | None = None
    means: Means = AUTO
    runtime: str = "transformers"
    loras: tuple[tuple[str, str], ...] = ()
    controlnets: tuple[tuple[str, str], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > MAX_NAME or re.search(r"[\s\x00-\x1f]", self.name):
            raise ConfigError(
                f"a model's name is 1 to {MAX_NAME} characters without spaces, got {self.name!r}",
                param="name",
            )
        if self.dtype not in DTYPES:
            raise self._wrong("dtype", f"one of {', '.join(DTYPES)}")
        if self.runtime not in RUNTIMES:
            raise self._wrong("runtime", f"one of {', '.join(RUNTIMES)}")
        for name in ("slots", "context", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise self._wrong(name, "at least 1")
        for name, allowed in CHOICES.items():
            given = getattr(self.means, name)
            if given not in allowed:
                raise ConfigError(
                    f"model '{self.name}': {name} must be one of {', '.join(allowed)}, "
                    f"got {given!r}",
                    param=name,
                )
        if self.kinds is not None and (not self.kinds or not set(self.kinds) <= set(KINDS)):
            raise self._wrong("kinds", f"some of {', '.join(KINDS)}")
        parse_source(self.source, self.name)

    def _wrong(self, field: str, wanted: str) -> ConfigError:
        return ConfigError(
            f"model '{self.name}': {field} must be {wanted}, got {getattr(self, field)!r}",
            param=field,
        )


def parse_source(source: str, model: str = "") -> Source:
    """Read the text of a ``source``. Touches no file.

    Raises :class:`~blip.errors.ConfigError` with every form that exists.
    """
    scheme = _SCHEME.fullmatch(source)
    if source and scheme is None:
        return Local(Path(source).expanduser())
    kind, rest = scheme.groups() if scheme else ("", "")
    if kind == "hf":
        repo, _, revision = rest.partition("@")
        revision = revision or "main"
        if _REPO.fullmatch(repo) and _REVISION.fullmatch(revision) and ".." not in repo + revision:
            return Hub(repo, revision)
    elif kind == "package":
        distributions, _, inside = rest.partition("/")
        first, *others = distributions.split("+")
        sound = all(map(_DISTRIBUTION.fullmatch, (first, *others)))
        if sound and ".." not in inside.split("/") and not (others and inside):
            return Package(first, inside.strip("/"), tuple(others))
    elif kind == "openai":
        engine, _, id = rest.partition("/")
        if _ENGINE.fullmatch(engine) and id:
            return Upstream(engine, id)
    elif kind == "plugin" and _PLUGIN.fullmatch(rest):
        return Plugin(rest)
    elif kind == "builtin" and rest == "echo":
        return Builtin(rest)
    raise ConfigError(
        f"model '{model}': source {source!r} is not one that blip knows",
        param="source",
        hint="Write a folder, a .gguf or .onnx file, hf:org/name[@revision], "
        "package:distribution[/sub/path], package:part-1+part-2, openai:upstream/model, "
        "plugin:name, plugin:module:Class, plugin:file.py:Class or builtin:echo.",
    )
