"""What is simulated, as TOML says it. Unknown keys and wrong values are errors that name the key.

Work is in *units*: a lone attempt on a device of speed 1 does one a second, so that sizes can be
read as seconds there. Sizes of memory are in GiB, all times in seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from blip.errors import ConfigError

#: Steps of something that changes over time: ``(from this second on, this much)``.
Steps = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When tasks come.

    ``process`` is ``poisson``; ``bursts``, which is Poisson at two rates in turn; or ``at_once``.
    ``load`` is the work that comes in a second as a share of what all devices can do. Bursts are
    ``burst`` times as dense as calms, and last ``burst_seconds`` and ``calm_seconds`` on average.
    """

    process: str = "poisson"
    load: float = 0.8
    burst: float = 5.0
    burst_seconds: float = 10.0
    calm_seconds: float = 50.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work tasks are, and how much of that is known when they come.

    Lognormal: ``mean`` in units, ``sigma`` of the logarithm (0: all are the same). A ``limit``
    cuts off what is larger; with ``known`` false that limit is all that the broker is told, as
    with texts that end when they end. Else it is told the size, off by a lognormal ``error``.
    """

    mean: float = 2.0
    sigma: float = 0.8
    limit: float = 0.0
    known: bool = True
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Models:
    """What tasks ask for. ``zipf`` is the exponent of popularity; 0: all are alike.

    ``load`` is what is read to load one, in GiB. ``crowding`` is how much each further attempt in
    a batch really slows the others, whatever the broker believes.
    """

    count: int = 1
    zipf: float = 0.0
    kind: str = "echo"
    memory: float = 4.0
    load: float = 4.0
    slots: int = 1
    crowding: float = 0.125


@dataclass(frozen=True, slots=True)
class Nodes:
    """``count`` machines of one make, each with ``devices`` alike.

    ``told_speed`` is what they advertise (0: the truth). Each offers ``offers`` models, drawn by
    popularity (0: all), and ``resident`` of those are loaded at the start, drawn evenly. A device
    reads ``bandwidth`` bytes a second; while it loads, it has ``load_share`` less to give
    to what runs. ``throttle`` and ``foreign`` are steps in time: the share of its speed that is
    left, and GiB that other programs hold. With ``tells_health`` the node advertises the former.
    """

    name: str
    count: int = 1
    devices: int = 1
    speed: float = 1.0
    told_speed: float = 0.0
    memory: float = 24.0
    bandwidth: float = 5e8
    load_share: float = 1.0
    offers: int = 0
    resident: int = 1
    throttle: Steps = ()
    foreign: Steps = ()
    tells_health: bool = False


@dataclass(frozen=True, slots=True)
class Links:
    """One-way latency, and adverts: how often, how late they arrive, whether on change as well."""

    hop: float = 0.001
    advert_interval: float = 1.0
    advert_delay: float = 0.0
    on_change: bool = True


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker's settings, and what its rates know at the start.

    ``rates`` is ``none``, or ``known``: true but for a lognormal ``rate_error`` for each model on
    each device. Without ``learn`` nothing corrects them afterwards.
    """

    heartbeat: float = 1.0
    suspect_after: float = 3.0
    lost_after: float = 10.0
    queue_limit: int = 1024
    prefetch: int = 1
    lookahead: int = 64
    rates: str = "known"
    rate_error: float = 0.0
    learn: bool = True


@dataclass(frozen=True, slots=True)
class Churn:
    """Nodes go and come back empty; exponential times. ``share`` of all nodes do.

    ``how`` are the ways, one drawn each time: ``goodbye`` finishes what runs and tells; ``crash``
    is noticed at once, since its connections break; ``vanish`` only by silence.
    """

    share: float = 0.0
    up: float = 120.0
    down: float = 30.0
    how: tuple[str, ...] = ("goodbye", "crash", "vanish")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """``share`` of the tasks must be done within ``least`` to ``most`` seconds, drawn evenly."""

    share: float = 0.0
    least: float = 5.0
    most: float = 30.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose tasks they are: ``share`` of all, with that ``priority``.

    ``at_once``: its tasks all come at the beginning, whatever the others' process is.
    """

    name: str
    share: float = 1.0
    priority: int = 5
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to simulate. ``warmup`` is the share of the first tasks that no figure counts.

    A run ends when every task has, or ``limit`` seconds after the last came.
    """

    name: str
    title: str
    nodes: tuple[Nodes, ...]
    tasks: int = 4000
    seed: int = 1
    #: Runs with seeds one after the other, whose tasks are counted together: where a model lands
    #: at the start is luck that lasts.
    repeats: int = 1
    warmup: float = 0.1
    limit: float = 3600.0
    policies: tuple[str, ...] = ("broker", "oracle")
    #: Whether the memory that the broker needs for each node is measured.
    measure_memory: bool = False
    arrivals: Arrivals = field(default_factory=Arrivals)
    sizes: Sizes = field(default_factory=Sizes)
    models: Models = field(default_factory=Models)
    links: Links = field(default_factory=Links)
    broker: Broker = field(default_factory=Broker)
    churn: Churn = field(default_factory=Churn)
    deadlines: Deadlines = field(default_factory=Deadlines)
    tenants: tuple[Tenant, ...] = ()

    @property
    def capacity(self) -> float:
        """Units a second that all devices do together with every slot of a model taken."""
        slots = self.models.slots
        batch = slots / (1 + self.models.crowding * (slots - 1))
        return batch * sum(group.speed * group.devices * group.count for group in self.nodes)


#: Values that make sense, by class and field: least, most, and whether the least itself does.
_POSITIVE = (0.0, math.inf, False)
_NATURAL = (0.0, math.inf, True)
_SHARE = (0.0, 1.0, True)
_COUNT = (1.0, math.inf, True)
_BOUNDS: dict[type, dict[str, tuple[float, float, bool]]] = {
    Scenario: {"tasks": _COUNT, "repeats": _COUNT, "warmup": (0.0, 0.9, True), "limit": _POSITIVE},
    Arrivals: {
        "load": _POSITIVE,
        "burst": _COUNT,
        "burst_seconds": _POSITIVE,
        "calm_seconds": _POSITIVE,
    },
    Sizes: {"mean": _POSITIVE, "sigma": _NATURAL, "limit": _NATURAL, "error": _NATURAL},
    Models: {
        "count": _COUNT,
        "zipf": _NATURAL,
        "memory": _NATURAL,
        "load": _NATURAL,
        "slots": _COUNT,
        "crowding": _NATURAL,
    },
    Nodes: {
        "count": _COUNT,
        "devices": _COUNT,
        "speed": _POSITIVE,
        "told_speed": _NATURAL,
        "memory": _POSITIVE,
        "bandwidth": _POSITIVE,
        "load_share": _SHARE,
        "offers": _NATURAL,
        "resident": _NATURAL,
    },
    Links: {"hop": _NATURAL, "advert_interval": _POSITIVE, "advert_delay": _NATURAL},
    Broker: {
        "heartbeat": _POSITIVE,
        "suspect_after": _POSITIVE,
        "lost_after": _POSITIVE,
        "queue_limit": _NATURAL,
        "prefetch": _NATURAL,
        "lookahead": _COUNT,
        "rate_error": _NATURAL,
    },
    Churn: {"share": _SHARE, "up": _POSITIVE, "down": _POSITIVE},
    Deadlines: {"share": _SHARE, "least": _POSITIVE, "most": _POSITIVE},
    Tenant: {"share": _SHARE, "priority": (1.0, 10.0, True)},
}
#: Words that may stand there.
_WORDS: dict[type, dict[str, tuple[str, ...]]] = {
    Arrivals: {"process": ("poisson", "bursts", "at_once")},
    Broker: {"rates": ("known", "none")},
    Churn: {"how": ("goodbye", "crash", "vanish")},
    Scenario: {
        "policies": (
            "broker", "oracle", "round_robin", "random", "least_queue", "power_of_two",
            "memory_blind", "affinity_blind", "fifo", "fifo_drop",
        )
    },
}  # fmt: skip

_FOLDERS = (
    Path(__file__).parent / "scenarios",  # installed
    Path(__file__).parents[2] / "configs" / "scenarios",  # a checkout
)


def check_policies(policies: Sequence[str], where: str) -> None:
    """Raise :class:`~blip.errors.ConfigError` unless each is a policy; ``where`` they stand."""
    there = _WORDS[Scenario]["policies"]
    for policy in policies:
        if policy not in there:
            raise ConfigError(f"'{where}' is one of {', '.join(there)}, not {policy!r}")
    if not policies:
        raise ConfigError(f"'{where}' must not be empty")


def names() -> list[str]:
    """Return the names of the scenarios that come with blip."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.toml")})


def find(name: str) -> Path:
    """Return the file of a scenario by its name, or by its path. Raises ``ConfigError``."""
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        raise ConfigError(f"there is no file '{name}'")
    for folder in _FOLDERS:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    there = names()
    near = difflib.get_close_matches(name, there, 1)
    guess = f"; did you mean '{near[0]}'?" if near else ""
    raise ConfigError(
        f"there is no scenario '{name}'{guess}",
        hint=f"There are {', '.join(there)}; or give the path of a TOML file.",
    )


def load(name: str) -> dict[str, Scenario]:
    """Read a scenario: itself under its own name, then its variants as ``name/variant``.

    Raises :class:`~blip.errors.ConfigError` that names the file and the key.
    """
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return parse(path.stem, text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def parse(name: str, text: str) -> dict[str, Scenario]:
    """Read the text of a scenario, see :func:`load`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from error
    variants = table.pop("variants", {})
    if not isinstance(variants, dict):
        raise ConfigError("'variants' must be a table")
    if "name" in table:
        raise ConfigError("'name' is not for scenarios to choose: it is the file's")
    scenarios = {name: _scenario(name, table, "")}
    for variant, changes in variants.items():
        if not isinstance(changes, dict) or not re.fullmatch(r"[a-z0-9-]+", variant):
            raise ConfigError(
                f"'variants.{variant}' must be a table under a name of letters, digits and '-'"
            )
        path = f"variants.{variant}."
        full = f"{name}/{variant}"
        _read(Scenario, {"name": full, "title": "", "nodes": [{"name": "n"}]} | changes, path)
        scenarios[full] = _scenario(full, _merge(table, changes), path)
    return scenarios


def _scenario(name: str, table: Mapping[str, Any], path: str) -> Scenario:
    scenario: Scenario = _read(Scenario, {**table, "name": name}, path)
    if not scenario.nodes:
        raise ConfigError(f"'{path}nodes' must list at least one")
    for field_name in ("nodes", "tenants"):
        found = [each.name for each in getattr(scenario, field_name)]
        for twice in {each for each in found if found.count(each) > 1}:
            raise ConfigError(f"'{path}{field_name}' has two of the name '{twice}'")
    if not scenario.sizes.known and not scenario.sizes.limit:
        raise ConfigError(f"'{path}sizes.known' false needs a '{path}sizes.limit' to tell instead")
    limits = scenario.broker
    if not limits.heartbeat < limits.suspect_after < limits.lost_after:
        raise ConfigError(
            f"'{path}broker' must have heartbeat < suspect_after < lost_after, not "
            f"{limits.heartbeat:g}, {limits.suspect_after:g}, {limits.lost_after:g}"
        )
    if scenario.deadlines.least > scenario.deadlines.most:
        raise ConfigError(f"'{path}deadlines.least' is more than '{path}deadlines.most'")
    if scenario.tenants and abs(sum(tenant.share for tenant in scenario.tenants) - 1) > 1e-6:
        raise ConfigError(f"the shares of '{path}tenants' must add up to 1")
    return scenario


def _merge(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _read(cls: type, table: Mapping[str, Any], path: str) -> Any:
    """Make a dataclass of a table; ``path`` is where it stands, for errors."""
    hints = get_type_hints(cls)
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            guess = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"unknown key '{path}{key}'{guess}")
    for key, each in fields.items():
        no_default = each.default is dataclasses.MISSING
        if key not in table and no_default and each.default_factory is dataclasses.MISSING:
            raise ConfigError(f"'{path}{key}' is missing")
    values = {}
    for key, value in table.items():
        where = f"{path}{key}"
        values[key] = _value(hints[key], value, where)
        bounds = _BOUNDS.get(cls, {}).get(key)
        if bounds is not None:
            _check(values[key], bounds, where)
        words = _WORDS.get(cls, {}).get(key)
        if words is not None:
            said = values[key] if isinstance(values[key], tuple) else (values[key],)
            for word in said:
                if word not in words:
                    raise ConfigError(f"'{where}' is one of {', '.join(words)}, not {word!r}")
            if not said:
                raise ConfigError(f"'{where}' must not be empty")
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"'{where}' must be a table")
        return _read(hint, value, where + ".")  # type: ignore[arg-type]
    if hint == Steps:
        return _steps(value, where)
    if get_origin(hint) is tuple:
        of = get_args(hint)[0]
        if not isinstance(value, list):
            raise ConfigError(f"'{where}' must be a list")
        return tuple(_value(of, each, f"{where}[{n}]") for n, each in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    assert get_origin(hint) not in (Union, types.UnionType)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        kind = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
        raise ConfigError(f"'{where}' must be {kind}, not {value!r}")
    return value


def _steps(value: Any, where: str) -> Steps:
    problem = ConfigError(f"'{where}' must be a list of [second, value], seconds ascending")
    if not isinstance(value, list):
        raise problem
    steps: list[tuple[float, float]] = []
    for pair in value:
        numbers = isinstance(pair, list) and all(type(each) in (int, float) for each in pair)
        if not numbers or len(pair) != 2 or min(pair) < 0 or (steps and pair[0] <= steps[-1][0]):
            raise problem
        steps.append((float(pair[0]), float(pair[1])))
    return tuple(steps)


def _check(value: float, bounds: tuple[float, float, bool], where: str) -> None:
    least, most, inclusive = bounds
    if not (least <= value <= most) or (value == least and not inclusive) or value == math.inf:
        low = f"{'at least' if inclusive else 'above'} {least:g}"
        high = "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(f"'{where}' must be {low}{high}, not {value:g}")
