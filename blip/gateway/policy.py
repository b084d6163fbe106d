"""What the holders of API keys may have: kinds, models, and what a picture may be of. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from blip.errors import ConfigError, NotPermitted, Unavailable
from blip.kinds.moderation import Verdict

#: Kinds that make pictures of what somebody writes: their tasks start only after the policy has
#: seen what they were asked.
GUARDED = frozenset({"image", "upscale", "video"})

#: Stands for a word of a list among the categories of an error.
WORDS = "words"


@dataclass(frozen=True)
class Policy:
    """One policy; ``blip.config``'s ``[policies.NAME]`` explains the fields."""

    name: str
    keys: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    prompts: bool = True
    pictures: bool = False
    block: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def permit(self, kind: str, model: str) -> None:
        """Raise :class:`~blip.errors.NotPermitted` for a kind or a model that it does not name."""
        for what, name, patterns in (("kind", kind, self.kinds), ("model", model, self.models)):
            if patterns and not any(fnmatchcase(name, pattern) for pattern in patterns):
                raise NotPermitted(
                    f"This API key may not use the {what} '{name}'.",
                    param="model",
                    details={"policy": self.name},
                )

    def guards(self, kind: str) -> bool:
        """Whether tasks of a kind must be looked at before they start."""
        return kind in GUARDED and (self.prompts or self.pictures or bool(self.words))

    def words_in(self, text: str) -> list[str]:
        """Return the words of the list that stand in a text, whatever their case."""
        if self._pattern is None:
            return []
        return list(dict.fromkeys(found.casefold() for found in self._pattern.findall(text)))

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.words:
            return None
        # longest first: of "bomb" and "bomb making" the longer is to be named
        several = "|".join(re.escape(word) for word in sorted(self.words, key=len, reverse=True))
        return re.compile(rf"(?<!\w)(?:{several})(?!\w)", re.IGNORECASE)

    def refused(self, verdict: Verdict) -> list[str]:
        """Return the categories for which something is not let through.

        Raises :class:`~blip.errors.Unavailable` if the policy names a category that the model does
        not judge: what nobody looked for cannot be said to be absent.
        """
        for name in (*self.block, *self.thresholds):
            if name not in verdict.scores:
                raise Unavailable(
                    f"the policy '{self.name}' names the category '{name}', which the moderation "
                    "model does not judge",
                )
        found = []
        for name, score in verdict.scores.items():
            threshold = self.thresholds.get(name)
            over = name in verdict.flagged if threshold is None else score >= threshold
            wanted = name not in self.allow and (not self.block or name in self.block)
            if over and wanted:
                found.append(name)
        return found


class Policies:
    """All policies of a gateway, by API key.

    A policy without keys is for every key that no other names, and for requests without one.
    """

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        self._by_key: dict[str, Policy] = {}
        self._others: Policy | None = None
        for policy in policies:
            for key in policy.keys:
                if key in self._by_key:
                    raise ConfigError(
                        f"the API key '{key}' has two policies: '{self._by_key[key].name}' and "
                        f"'{policy.name}'",
                        param=f"policies.{policy.name}.keys",
                    )
                self._by_key[key] = policy
            if not policy.keys:
                if self._others is not None:
                    raise ConfigError(
                        f"two policies name no keys: '{self._others.name}' and '{policy.name}'",
                        param=f"policies.{policy.name}.keys",
                    )
                self._others = policy

    def of(self, tenant: str) -> Policy | None:
        """Return the policy for an API key's name, "" for none."""
        return self._by_key.get(tenant, self._others)
