"""The node table of a gateway: who is there, and which models they serve for which kinds."""

from __future__ import annotations

import collections
import difflib

from blip.errors import BlipError, ModelLoadFailed, ModelNotFound, NoNode
from blip.gateway.mesh import ServedModel
from blip.protocol.messages import NodeEntry, Nodes
from blip.protocol.names import unique_names


class NodeTable:
    """What the broker said last. Pure; kept when the broker goes."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeEntry] = {}
        #: The names that nodes are shown by, by id.
        self.names: dict[str, str] = {}
        self.served: list[ServedModel] = []
        self._serving: set[tuple[str, str]] = set()
        self._broken: dict[str, str] = {}
        self._unconfirmed: set[str] = set()

    def update(self, nodes: Nodes) -> list[str]:
        """Take a snapshot or a change; return the ids of nodes that are gone.

        A broker that has just started knows nobody yet. Nodes that its first snapshot leaves out
        are kept, unconfirmed, until :meth:`sweep`: what runs on them goes on.
        """
        if nodes.reset:
            self._unconfirmed = set(self.nodes)
        gone = [id for id in nodes.gone if id in self.nodes]
        self._remove(gone)
        self.nodes.update((entry.id, entry) for entry in nodes.nodes)
        self._unconfirmed.difference_update(entry.id for entry in nodes.nodes)
        self._index()
        return gone

    def sweep(self) -> list[str]:
        """Drop the nodes that no broker has confirmed since the last snapshot; return their ids."""
        gone = list(self._unconfirmed)
        self._remove(gone)
        if gone:
            self._index()
        return gone

    def _remove(self, ids: list[str]) -> None:
        for id in ids:
            del self.nodes[id]
        self._unconfirmed.difference_update(ids)

    def serves(self, kind: str, model: str) -> bool:
        """Whether a node that is not lost can run this."""
        return (kind, model) in self._serving

    def _index(self) -> None:
        serving: set[tuple[str, str]] = set()
        broken: dict[str, str] = {}
        found: dict[str, tuple[set[str], list[int], list[str]]] = {}
        additions: dict[str, list[tuple[set[str], set[str]]]] = {}
        ready: collections.Counter[str] = collections.Counter()
        self.names = unique_names(self.nodes.values())
        for entry in self.nodes.values():
            if entry.status == "lost":
                continue
            for model in entry.advert.models:
                if not model.kinds:  # its node could not even find out what it does
                    broken[model.name] = f"{model.error} (node {self.names[entry.id]})"
                    continue
                kinds, contexts, names = found.setdefault(model.name, (set(), [], []))
                kinds.update(model.kinds)
                names.append(self.names[entry.id])
                if model.context is not None:
                    contexts.append(model.context)
                serving.update((kind, model.name) for kind in model.kinds)
                additions.setdefault(model.name, []).append(
                    (set(model.loras), set(model.controlnets))
                )
            for replica in entry.advert.replicas:
                ready[replica.model] += replica.state == "ready"
        self._serving = serving
        self._broken = broken
        self.served = [
            ServedModel(
                name,
                tuple(sorted(kinds)),
                min(contexts, default=None),
                tuple(sorted(names)),
                ready[name],
                *(
                    tuple(sorted(set.intersection(*each)))
                    for each in zip(*additions[name], strict=True)
                ),
            )
            for name, (kinds, contexts, names) in sorted(found.items())
        ]

    def unknown(self, kind: str, model: str) -> BlipError:
        """Explain why nobody serves this, naming what is nearest."""
        if not self.nodes:
            return NoNode("no node is connected to this mesh")
        other = sorted({k for k, name in self._serving if name == model})
        if other:
            return ModelNotFound(
                f"the model '{model}' does not do '{kind}', only {', '.join(other)}",
                param="model",
            )
        if model in self._broken:
            return ModelLoadFailed(self._broken[model])
        names = sorted({name for k, name in self._serving if k == kind})
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.4)
        # in the message too: clients show that, and seldom the hint
        guess = "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""
        return ModelNotFound(
            f"no node serves a model '{model}' for '{kind}'{guess}",
            param="model",
            details={"near": near},
        )
