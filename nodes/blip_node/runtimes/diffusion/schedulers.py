"""Schedulers by name: how a pipeline gets from noise to a picture, chosen a task."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import diffusers
import numpy
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from blip.errors import InvalidRequest

#: Ends a scheduler's name to ask for Karras' spacing of the noise levels
#: (https://arxiv.org/abs/2206.00364, equation 5).
KARRAS = "-karras"


class _Choice(NamedTuple):
    """A class of diffusers and what it must be told to be what its name promises."""

    name: str
    settings: dict[str, Any] = {}  # noqa: RUF012  (never mutated)
    karras: bool = True


_SOLVER = {"algorithm_type": "dpmsolver++", "solver_order": 2}

#: What users ask for; names as most programs for images write them.
CHOICES: dict[str, _Choice] = {
    "ddim": _Choice("DDIMScheduler", {"set_alpha_to_one": False}, karras=False),
    "ddpm": _Choice("DDPMScheduler", {"variance_type": "fixed_small"}, karras=False),
    "dpm++2m": _Choice("DPMSolverMultistepScheduler", _SOLVER),
    "dpm++2s": _Choice("DPMSolverSinglestepScheduler", _SOLVER),
    "euler": _Choice("EulerDiscreteScheduler"),
    "euler-a": _Choice("EulerAncestralDiscreteScheduler", karras=False),
    "heun": _Choice("HeunDiscreteScheduler"),
    "lms": _Choice("LMSDiscreteScheduler"),
    "kdpm2": _Choice("KDPM2DiscreteScheduler"),
    "kdpm2-a": _Choice("KDPM2AncestralDiscreteScheduler"),
    "unipc": _Choice("UniPCMultistepScheduler"),
}

#: Other spellings of the same.
ALIASES: dict[str, str] = {
    "dpm_multistep": "dpm++2m",
    "dpmpp_2m": "dpm++2m",
    "dpm++": "dpm++2m",
    "dpm_singlestep": "dpm++2s",
    "dpmpp_2s": "dpm++2s",
    "euler_ancestral": "euler-a",
    "euler_a": "euler-a",
    "kdpm2_ancestral": "kdpm2-a",
    "kdpm2_a": "kdpm2-a",
}

#: Every name, for errors and documentation.
NAMES = tuple(
    name + suffix
    for name, choice in CHOICES.items()
    for suffix in (("", KARRAS) if choice.karras else ("",))
)

#: Other spacings that a model's own configuration may ask for; Karras' excludes them.
_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class ExactLMSScheduler(LMSDiscreteScheduler):  # type: ignore[misc]
    """Linear multistep, with its coefficients integrated exactly.

    They are integrals of polynomials of degree three at most; diffusers has scipy approximate
    them, which would be the only thing that blip needs scipy for.
    """

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Return the weight of the derivative ``current_order`` steps ago in step ``t``."""
        here = float(self.sigmas[t])  # distances from here: no cancellation at large sigmas
        own = float(self.sigmas[t - current_order]) - here
        others = [
            float(self.sigmas[t - back]) - here for back in range(order) if back != current_order
        ]
        basis = numpy.polynomial.Polynomial.fromroots(others) if others else _ONE
        scale = float(numpy.prod([own - other for other in others]))
        integral = (basis / scale).integ()
        return float(integral(float(self.sigmas[t + 1]) - here) - integral(0.0))


_ONE = numpy.polynomial.Polynomial([1.0])


def fresh(own: Any, name: str | None) -> Any:
    """Return a new scheduler for one task: the model's ``own`` kind, or the one called ``name``.

    Pipelines keep their place in the schedule inside the scheduler, so no two tasks may share
    one. Raises :class:`~blip.errors.InvalidRequest` for a name that does not exist, listing those
    that do, or that the model cannot use.
    """
    if name is None:
        return type(own).from_config(own.config)
    asked = name.lower().replace(" ", "-")
    karras = asked.endswith((KARRAS, "_karras"))
    base = asked[: -len(KARRAS)] if karras else asked
    choice = CHOICES.get(ALIASES.get(base, base))
    if choice is None:
        raise InvalidRequest(
            f"There is no scheduler called '{name}'.",
            hint=f"There are {', '.join(NAMES)}.",
            param="scheduler",
        )
    if karras and not choice.karras:
        raise InvalidRequest(
            f"The scheduler '{base}' knows no Karras spacing.",
            hint=f"Leave '{KARRAS}' out, or choose among "
            f"{', '.join(each for each in NAMES if each.endswith(KARRAS))}.",
            param="scheduler",
        )
    cls = ExactLMSScheduler if choice.name == "LMSDiscreteScheduler" else None
    cls = cls or getattr(diffusers, choice.name)
    known = inspect.signature(cls.__init__).parameters
    _check_family(own, known, name)
    settings = {**choice.settings, **{key: False for key in _SPACINGS if key in known}}
    if karras:
        settings["use_karras_sigmas"] = True
    if "clip_sample" in known and "clip_sample" not in own.config:
        settings["clip_sample"] = False  # latents are not pixels: they may well exceed 1
    made = cls.from_config(own.config, **settings)
    return _begun_at_the_beginning(made) if karras else made


def _check_family(own: Any, known: Any, name: str) -> None:
    """Raise if the model was trained on straight paths from noise, which the class cannot walk."""
    flows = own.config.get("use_flow_sigmas") or "flow" in str(own.config.get("prediction_type"))
    if type(own).__name__.startswith("FlowMatch") or (flows and "use_flow_sigmas" not in known):
        raise InvalidRequest(
            f"The scheduler '{name}' does not fit this model, which is a flow-matching one "
            f"({type(own).__name__}).",
            hint="Leave 'scheduler' out: the model brings its own.",
            param="scheduler",
        )


def _begun_at_the_beginning(scheduler: Any) -> Any:
    """Have a scheduler start at its first step, where it would search for it.

    Karras' spacing may round several noise levels to one timestep; the search finds the second of
    them and then runs off the end.
    """
    set_timesteps, set_begin_index = scheduler.set_timesteps, scheduler.set_begin_index

    def begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        set_begin_index(0)

    scheduler.set_timesteps = begin
    return scheduler
