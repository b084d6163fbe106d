"""From a classifier's probabilities to a verdict, as the configuration says. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blip.errors import ModelLoadFailed, RuntimeFailed
from blip.kinds.moderation import CATEGORIES, Verdict

#: From which score on a category is flagged where the configuration names no threshold.
THRESHOLD = 0.5

#: What a label is mapped to that says nothing is wrong.
HARMLESS = ""


class Rules(NamedTuple):
    """The outputs behind each category, and from which score on it is flagged.

    ``exclusive`` says that outputs are shares of one whole: those of a category are then added,
    where otherwise the largest counts.
    """

    categories: Mapping[str, list[int]]
    thresholds: Mapping[str, float]
    exclusive: bool

    def judge(self, chances: Sequence[float]) -> Verdict:
        """Return the verdict. Raises :class:`~blip.errors.RuntimeFailed` for what is no number."""
        if not all(map(math.isfinite, chances)):
            # a comparison with NaN is false, and so would the flag be
            raise RuntimeFailed("the model's answer is not finite")
        scores = {}
        for category, outputs in self.categories.items():
            found = [chances[at] for at in outputs]
            score = math.fsum(found) if self.exclusive else max(found)
            scores[category] = min(1.0, max(0.0, score))
        flagged = [name for name, score in scores.items() if score >= self.thresholds[name]]
        return Verdict(scores, flagged)


def read_rules(
    outputs: Sequence[str],
    labels: Mapping[str, str],
    thresholds: Mapping[str, float],
    *,
    exclusive: bool,
) -> Rules:
    """Return the rules for a model with these outputs; ``labels`` maps them to categories.

    Without ``labels`` outputs must be called as OpenAI calls categories. Every output must be
    accounted for: one that was forgotten would never be flagged. Raises
    :class:`~blip.errors.ModelLoadFailed`.
    """
    unknown = sorted(labels.keys() - set(outputs))
    if unknown:
        near = difflib.get_close_matches(unknown[0], outputs, n=1)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        raise ModelLoadFailed(
            f"labels: the model has no output '{unknown[0]}'{guess}",
            hint=f"Its outputs: {', '.join(outputs)}.",
        )
    given = labels or {name: name for name in outputs if name in CATEGORIES}
    missing = [name for name in outputs if name not in given]
    if missing:
        raise ModelLoadFailed(
            f"labels: nothing is said of the model's output '{missing[0]}'",
            hint="Map each output to a category, or to '' if it means that nothing is wrong: "
            f"[models.NAME.labels] {missing[0]} = 'harassment'. Its outputs: {', '.join(outputs)}.",
        )
    categories: dict[str, list[int]] = {}
    for at, name in enumerate(outputs):
        if given[name] != HARMLESS:
            categories.setdefault(given[name], []).append(at)
    if not categories:
        raise ModelLoadFailed("labels: no output of the model is mapped to a category")
    stray = sorted(thresholds.keys() - categories.keys())
    if stray:
        raise ModelLoadFailed(
            f"thresholds: the model does not judge '{stray[0]}'",
            hint=f"It judges {', '.join(categories)}.",
        )
    return Rules(
        categories, {name: thresholds.get(name, THRESHOLD) for name in categories}, exclusive
    )
