"""Names for nodes that tell them apart. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from blip.protocol.messages import NodeEntry

#: Characters of a node's id that tell it from others of its name, at least.
ID_TAIL = 4


def unique_names(entries: Iterable[NodeEntry]) -> dict[str, str]:
    """Return a name for every node, by id, that no other node has.

    Names are their owners' choice, so two nodes may have the same: ``rig`` and ``rig`` become
    ``rig#3f2a`` and ``rig#91c0``, after the ends of their ids.
    """
    groups: dict[str, set[str]] = {}
    for entry in entries:
        groups.setdefault(entry.name or entry.id, set()).add(entry.id)
    names: dict[str, str] = {}
    for name, ids in groups.items():
        if len(ids) == 1:
            names.update(dict.fromkeys(ids, name))
            continue
        tail = ID_TAIL
        while len({id[-tail:] for id in ids}) < len(ids):
            tail += 1
        names.update((id, f"{name}#{id[-tail:]}") for id in ids)
    return names
