"""Loading speech models through transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from blip.errors import ModelLoadFailed
from blip_node.models import weights
from blip_node.runtimes.base import LoadSpec
from blip_node.runtimes.loading import load_failure

#: Torch takes more; this many fit a signed integer of the wire.
_SEEDS = 1 << 63


def load_network(spec: LoadSpec, name: str, folder: Path) -> Any:
    """Load the transformers class ``name`` from a folder, onto ``spec.device`` in ``spec.dtype``.

    Only safetensors on this disk are read and none of the snapshot's code is run. Raises
    :class:`~blip.errors.ModelLoadFailed` with the reason, or ``NoCapacity`` when it does not fit.
    """
    transformers.logging.disable_progress_bar()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    try:
        stored = weights.main_dtype(weights.total_counts(weights.shards(folder)))
        network, info = getattr(transformers, name).from_pretrained(
            folder,
            dtype=getattr(torch, weights.load_dtype(spec.dtype, stored, spec.device)),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
        network.to(spec.device)
    except Exception as error:
        raise load_failure(spec, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers would go on with random numbers in their place
        raise ModelLoadFailed(
            f"model '{spec.model}': its files lack {len(missing)} of the weights that {name} needs "
            f"({missing[0]}, ...)"
        )
    return network.eval()


def seeder(seed: int | None) -> Callable[[int], None]:
    """Return what seeds torch for a text's sentence, by its number; without a seed one is drawn."""
    drawn = random.getrandbits(63) if seed is None else seed

    def sow(number: int) -> None:
        torch.manual_seed((drawn + number) % _SEEDS)

    return sow
