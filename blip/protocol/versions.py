"""Which protocol versions this build speaks, and how two peers agree on one."""

from __future__ import annotations

from blip.errors import RemoteProtocolError

#: Oldest and newest version this build speaks.
LOW, HIGH = 1, 1


def negotiate(
    low: int,
    high: int,
    *,
    own_low: int = LOW,
    own_high: int = HIGH,
    own: str = "the listening side",
    peer: str = "the dialling side",
) -> int:
    """Return the newest version both sides speak.

    Raises :class:`~blip.errors.RemoteProtocolError` whose message tells a person which side to
    upgrade. It travels in the GOODBYE and is read at the other end, so it calls both by name.
    """
    version = min(high, own_high)
    if version >= max(low, own_low):
        return version
    older = peer if high < own_low else own
    raise RemoteProtocolError(
        f"{own} speaks protocol {_span(own_low, own_high)}, {peer} {_span(low, high)}: "
        f"upgrade {older}"
    )


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
