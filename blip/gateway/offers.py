"""Which kinds the mesh's plugins define, and where. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from blip.protocol.messages import NodeEntry, PluginKind
from blip.protocol.names import unique_names


@dataclass(slots=True)
class Offer:
    """One version of a kind: the models and the nodes, by name, that have it."""

    kind: PluginKind
    models: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)


def offers(nodes: Iterable[NodeEntry]) -> list[Offer]:
    """Return all versions of all kinds: by name, and what most nodes have first."""
    entries = [entry for entry in nodes if entry.status != "lost" and entry.advert.kinds]
    names = unique_names(entries)
    found: dict[PluginKind, Offer] = {}
    for entry in entries:
        for kind in entry.advert.kinds:
            offer = found.setdefault(kind, Offer(kind))
            offer.nodes.add(names[entry.id])
            offer.models.update(m.name for m in entry.advert.models if kind.name in m.kinds)
    return sorted(found.values(), key=lambda each: (each.kind.name, -len(each.nodes), each.kind))
