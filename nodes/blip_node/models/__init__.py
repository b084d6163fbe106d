"""Where models come from: naming, finding, describing and preparing snapshots.

Nothing here imports torch or transformers, so an agent can use all of it; the one job that needs
them (converting a GGUF file) runs in a process of its own.
"""

from __future__ import annotations

from blip_node.models.description import Description
from blip_node.models.find import found
from blip_node.models.prepare import prepare
from blip_node.models.snapshot import describe, locate
from blip_node.models.spec import ModelSpec

__all__ = ["Description", "ModelSpec", "describe", "found", "locate", "prepare"]
