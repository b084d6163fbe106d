"""Every setting of blip in one place, each with its origin.

``load`` reads them: command line > environment > file > default. A process that starts another one
hands over what it has read with ``save`` and ``restore``, so a child never reads a second opinion.
"""

from __future__ import annotations

from blip.config.exposure import check_exposure, is_loopback
from blip.config.load import Loaded, load, restore, save
from blip.config.schema import (
    BrokerConfig,
    Config,
    GatewayConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    NodeConfig,
    StaticDevice,
    StoreConfig,
    UpstreamConfig,
)

__all__ = [
    "BrokerConfig",
    "Config",
    "GatewayConfig",
    "Loaded",
    "LogConfig",
    "MeshConfig",
    "ModelConfig",
    "NodeConfig",
    "StaticDevice",
    "StoreConfig",
    "UpstreamConfig",
    "check_exposure",
    "is_loopback",
    "load",
    "restore",
    "save",
]
