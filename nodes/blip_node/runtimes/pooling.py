"""One vector a text from one vector a token, as a model's own files say.

sentence-transformers lists a model's parts in ``modules.json`` and how the second one pools in
``1_Pooling/config.json``. A model without these files is pooled by the mean and normalised, which
is what most of them were trained for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip.errors import ModelLoadFailed
from blip_node.models.files import parse_object, read_object, read_text

#: Takes hidden states [texts, tokens, dimensions] and a mask [texts, tokens, 1] of ones and
#: zeros; returns [texts, dimensions]. Padding is on the right.
Pool = Callable[[Tensor, Tensor], Tensor]


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    return states[:, 0]


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask == 0, float("-inf")).amax(1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1)


def _mean_sqrt_len(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask).sum(1) / mask.sum(1).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)[:, None]
    return (states * weights).sum(1) / weights.sum(1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    rows = torch.arange(len(states), device=states.device)
    return states[rows, mask[:, :, 0].sum(1).long() - 1]


#: By sentence-transformers' names; the older form of its file has one ``pooling_mode_X`` each.
POOLS: dict[str, tuple[str, Pool]] = {
    "cls": ("pooling_mode_cls_token", _cls),
    "max": ("pooling_mode_max_tokens", _max),
    "mean": ("pooling_mode_mean_tokens", _mean),
    "mean_sqrt_len_tokens": ("pooling_mode_mean_sqrt_len_tokens", _mean_sqrt_len),
    "weightedmean": ("pooling_mode_weightedmean_tokens", _weighted_mean),
    "lasttoken": ("pooling_mode_lasttoken", _last),
}


class Pooling:
    """What happens after the encoder: pooling by one or more modes, and normalisation or not."""

    def __init__(self, modes: list[str], normalise: bool) -> None:
        self.modes = modes
        self.normalise = normalise

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return float32 [texts, dimensions]; several modes stand side by side."""
        states, mask = states.float(), mask[:, :, None].float()
        pooled = torch.cat([POOLS[mode][1](states, mask) for mode in self.modes], dim=1)
        return normalised(pooled) if self.normalise else pooled


def normalised(vectors: Tensor) -> Tensor:
    """Scale each row to length 1."""
    return torch.nn.functional.normalize(vectors, dim=1)


def read_pooling(folder: Path) -> Pooling:
    """Read what a folder says of pooling.

    Raises :class:`~blip.errors.ModelLoadFailed` for parts or modes that are not known here: the
    vectors would be wrong without them.
    """
    if not (folder / "modules.json").is_file():
        return Pooling(["mean"], normalise=True)
    modes: list[str] = []
    normalise = False
    for module in _modules(folder):
        name = str(module.get("type", "")).rpartition(".")[2]
        if name == "Pooling":
            modes = _modes(read_object(folder / str(module.get("path", "")) / "config.json"))
        elif name == "Normalize":
            normalise = True
        elif name != "Transformer":
            raise ModelLoadFailed(
                f"its modules.json asks for a {name or 'nameless'} module, unknown to blip",
                hint="Embedding models of a Transformer, a Pooling and a Normalize module run.",
            )
    return Pooling(modes or ["mean"], normalise)


def _modules(folder: Path) -> list[dict[str, Any]]:
    text = read_text(folder / "modules.json")
    modules = parse_object(f'{{"modules": {text}}}', "its modules.json").get("modules")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelLoadFailed(f"{folder}/modules.json is not a list of modules")
    return modules


def _modes(config: dict[str, Any]) -> list[str]:
    said = config.get("pooling_mode")
    if said is not None:
        modes = [said] if isinstance(said, str) else list(said)
    else:
        modes = [mode for mode, (flag, _) in POOLS.items() if config.get(flag)]
    unknown = [mode for mode in modes if mode not in POOLS]
    if unknown or not modes:
        raise ModelLoadFailed(
            f"its pooling is {', '.join(map(str, unknown)) or 'not given'}; blip knows "
            f"{', '.join(POOLS)}"
        )
    return modes
