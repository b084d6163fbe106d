"""The command line, whole: the app with the verbs of all modules, in the order of ``--help``."""

from __future__ import annotations

from blip.cli.options import app

# importing a module adds its verbs
# isort: off
from blip.cli.verbs import (  # noqa: F401
    roles,
    text,
    image,
    speech,
    see,
    pipelines,
    video,
    upscale,
    safety,
    kinds,
    hearing,
    look,
    operate,
    settings,
    help,
    bench,
)
# isort: on

__all__ = ["app"]
