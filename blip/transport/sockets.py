"""Every ZeroMQ socket is made here, with every option set. Measured traps stand beside them."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import zmq

from blip.errors import ConfigError
from blip.protocol.codec import CONTROL_LIMIT, DATA_LIMIT

#: One message of the protocol plus its framing.
_SLACK = 64 * 1024

#: Messages a pipe holds. Byte credit and the lease ledger bound what is under way; reaching this
#: means that a peer has stopped reading, and then failing fast beats buffering.
CONTROL_HWM = 1000
DATA_HWM = 256


def make_socket(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, *, data: bool = False
) -> zmq.Socket[bytes]:
    """Make a ROUTER or DEALER socket for a control or a data link."""
    socket = context.socket(kind)
    socket.linger = 0  # the default (-1) makes context.term() hang on an undelivered message
    hwm = DATA_HWM if data else CONTROL_HWM
    socket.sndhwm = hwm
    socket.rcvhwm = hwm
    # A breach disconnects the peer without a word, so the codec checks before sending.
    socket.maxmsgsize = (DATA_LIMIT if data else CONTROL_LIMIT) + _SLACK
    # "Host and process exist": the IO thread answers even while Python is stuck, so this only
    # finds dead machines and cut cables; the link's own silence rules find the rest.
    socket.heartbeat_ivl = 2000
    socket.heartbeat_timeout = 6000
    socket.heartbeat_ttl = 6000
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = 30
    socket.reconnect_ivl = 100
    socket.reconnect_ivl_max = 5000  # the default 0 means no back-off at all
    socket.handshake_ivl = 5000
    if kind == zmq.ROUTER:
        # Without MANDATORY a send to an unknown or full peer succeeds and the message is gone.
        socket.router_mandatory = True
        # Without HANDOVER a peer that reconnects through a half-open pipe stays deaf.
        socket.router_handover = True
    # IMMEDIATE stays off. With it libzmq throws away what has arrived and was not read yet when a
    # connection ends: 500 of 500 last messages of a node that shuts down. Without it a DEALER
    # queues for an address that is dead and delivers to whoever binds it next; but a Dialer sends
    # only while it is connected, and the few messages that a breaking connection still took are
    # strangers' to the next listener, and out of date by a HELLO to the same one.
    return socket


def check_bind(endpoint: str) -> None:
    """Refuse to expose a link without encryption.

    Raises :class:`~blip.errors.ConfigError` for anything but ipc, inproc and loopback addresses.
    """
    parts = urlsplit(endpoint)
    if parts.scheme in ("ipc", "inproc"):
        return
    host = parts.hostname or "*"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if parts.scheme != "tcp" or not loopback:
        raise ConfigError(
            f"refusing to bind {endpoint}: links beyond this machine need keys, "
            "and this version has none yet",
            hint="Bind 127.0.0.1, and join machines through an encrypted tunnel (WireGuard, ssh).",
        )
