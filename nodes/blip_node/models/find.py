"""Models that are already on this machine, in the Hugging Face cache."""

from __future__ import annotations

import logging
from pathlib import Path

from blip.errors import BlipError
from blip_node.models import hub
from blip_node.models.snapshot import describe
from blip_node.models.spec import ModelSpec

logger = logging.getLogger(__name__)


def found(cache: Path | None = None) -> list[ModelSpec]:
    """Return a spec for every cached repository that a runtime could load now.

    Models are named by their repository. What is broken, unfinished or of no use here is skipped,
    and the log (at INFO) says why.
    """
    cache = cache or hub.default_cache()
    specs = []
    for repo in hub.cached_repos(cache):
        try:
            spec = ModelSpec(repo, f"hf:{repo}")
            if describe(spec, cache).on_disk:
                specs.append(spec)
            else:
                logger.info("skipped %s in %s: no snapshot of its main branch", repo, cache)
        except BlipError as error:
            logger.info("skipped %s in %s: %s", repo, cache, error)
    return specs
