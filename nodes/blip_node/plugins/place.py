"""Where a plugin's class is: an entry point, a module, or a file. Imports it, so: children only."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from blip.errors import ModelLoadFailed
from blip_node.plugin import GROUP, Plugin


def announced() -> list[str]:
    """Return the names of the plugins that installed packages announce. Imports none of them."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)})


def find_class(place: str) -> type[Plugin]:
    """Import a plugin's class: ``name`` of an entry point, ``module:Class`` or ``file.py:Class``.

    Raises :class:`~blip.errors.ModelLoadFailed` with the reason.
    """
    where, _, name = place.rpartition(":")
    try:
        found = getattr(_module(where), name) if where else _entry_point(name)
    except ModelLoadFailed:
        raise
    except Exception as error:  # whatever an import of somebody's code raises
        raise ModelLoadFailed(
            f"the plugin {place} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        raise ModelLoadFailed(f"{place} is not a subclass of blip_node.plugin.Plugin")
    return found


def _entry_point(name: str) -> Any:
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return point.load()
    known = ", ".join(announced()) or "none"
    raise ModelLoadFailed(
        f"no installed package announces a plugin '{name}' (announced: {known})",
        hint="Write plugin:module:Class or plugin:file.py:Class for one that is not installed.",
    )


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).expanduser().absolute()
    if not path.is_file():
        raise ModelLoadFailed(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    # annotations are looked up there
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
