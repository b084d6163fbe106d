"""What the node offers of one engine, and when it looks again. Pure.

ASKING -listed-> UP -failed-> DOWN -listed-> UP
   |              |            |
   +-- failed ----|------------+
                  +-- a first silence: asked again soon, UP meanwhile

While UP the engine's list is what is offered. While DOWN everything that is known of it stays
listed with the reason, so that nothing is placed there and people see why.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from blip.config import UpstreamConfig
from blip.errors import BlipError, ConfigError, Unavailable
from blip_node.models.spec import ModelSpec, Upstream, parse_source
from blip_node.upstreams.engine import Engine
from blip_node.upstreams.listing import KINDS, Listed

#: Pauses between two looks at an engine that is down: from the first, doubled, to the longest. An
#: engine that comes back is noticed within seconds, whatever ``health_interval`` says.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 4.0

#: Ollama's name for the version of a model that is meant when none is given.
_LATEST = ":latest"


class State(Enum):
    """How the engine is, as far as it has been asked."""

    ASKING = "asking"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Stock:
    """What is there of an engine, by the names that the mesh knows: models, and reasons."""

    offers: dict[str, ModelSpec] = field(default_factory=dict)
    missing: dict[str, BlipError] = field(default_factory=dict)


class Watch:
    """One engine under watch. ``aliases`` are configured models whose source is the engine."""

    def __init__(
        self, name: str, config: UpstreamConfig, aliases: Iterable[ModelSpec] = ()
    ) -> None:
        unknown = sorted(set(config.kinds) - set(KINDS))
        if unknown:
            raise ConfigError(
                f"upstream '{name}': an engine can be asked for {', '.join(KINDS)}, "
                f"not for {unknown[0]!r}",
                param=f"upstreams.{name}.kinds",
            )
        self.engine = Engine(name, config.url, config.api_key_env, config.timeout)
        self.state = State.ASKING
        self.stock = Stock()
        #: Why it is DOWN.
        self.reason: BlipError | None = None
        #: Seconds until the engine should be asked again.
        self.pause = 0.0
        self._config = config
        self._aliases: dict[str, tuple[ModelSpec, str]] = {}
        for alias in aliases:
            source = parse_source(alias.source, alias.name)
            assert isinstance(source, Upstream)
            self._aliases[alias.name] = alias, source.model
        self._failures = 0

    def listed(self, models: Sequence[Listed]) -> list[str]:
        """The engine answered with its list; return what is odd about it, for the log."""
        self.state, self._failures = State.UP, 0
        self.pause = self._config.health_interval
        by_id = {model.id: model for model in models}
        offers: dict[str, ModelSpec] = {}
        missing: dict[str, BlipError] = {}
        odd: list[str] = []
        for alias, id in self._aliases.values():
            model = by_id.get(id) or by_id.get(id + _LATEST)
            if model is None:
                missing[alias.name] = self._not_listed(id, by_id)
            else:
                offers[alias.name] = self._alias(alias, model)
        for model in models:
            name = self._config.prefix + model.id
            if not self._wanted(model.id) or name in self._aliases or name in offers:
                continue
            if not (self._config.kinds or model.kinds):
                odd.append(f"'{model.id}' serves no kind that can be passed on")
                continue
            try:
                offers[name] = self._spec(name, model)
            except ConfigError as error:
                odd.append(error.message)
        for id in self._named():
            if not (id in by_id or id + _LATEST in by_id):
                missing.setdefault(self._config.prefix + id, self._not_listed(id, by_id))
        self.stock = Stock(offers, missing)
        return odd

    def failed(self, error: BlipError, *, silent: bool = False) -> None:
        """The engine could not be asked, or made no sense. ``silent``: it only took too long.

        A busy engine may be slow to list its models, so one silence is forgiven.
        """
        self._failures += 1
        self.pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._failures - 1))
        if silent and self.state is State.UP and self._failures == 1:
            return
        self.state = State.DOWN
        known = {
            **self.stock.offers,
            **self.stock.missing,
            **self._aliases,
            **{self._config.prefix + id: None for id in self._named()},
        }
        self.reason = Unavailable(f"upstream '{self.engine.name}' {error.message}")
        self.stock = Stock({}, dict.fromkeys(known, self.reason))

    def _spec(self, name: str, model: Listed) -> ModelSpec:
        return ModelSpec(
            name,
            f"openai:{self.engine.name}/{model.id}",
            kinds=tuple(self._config.kinds) or model.kinds,
            slots=self._config.slots,
            context=model.context,
            engine=replace(self.engine, dialect=model.dialect),
        )

    def _alias(self, alias: ModelSpec, model: Listed) -> ModelSpec:
        return replace(
            alias,
            source=f"openai:{self.engine.name}/{model.id}",
            kinds=alias.kinds or tuple(self._config.kinds) or model.kinds,
            slots=alias.slots or self._config.slots,
            context=alias.context or model.context,
            engine=replace(self.engine, dialect=model.dialect),
        )

    def _wanted(self, id: str) -> bool:
        return not self._config.models or any(
            fnmatch.fnmatchcase(id, pattern) or id == pattern + _LATEST
            for pattern in self._config.models
        )

    def _named(self) -> list[str]:
        """The ids that the configuration names outright."""
        return [each for each in self._config.models if not set(each) & set("*?[")]

    def _not_listed(self, id: str, by_id: Iterable[str]) -> BlipError:
        near = difflib.get_close_matches(id, list(by_id), n=1, cutoff=0.4)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        return Unavailable(f"upstream '{self.engine.name}' does not list a model '{id}'{guess}")
