"""Log lines on stderr, as text for people or JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``role``, ``logger``, ``text``, ``trace``."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the line (logging's call)."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(role: str, level: str, style: Literal["text", "json"]) -> None:
    """Send this process's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter(role))
    else:
        text = f"%(asctime)s %(levelname)-7s {role}: %(message)s"
        handler.setFormatter(logging.Formatter(text, "%H:%M:%S"))
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    # a line a request is what /metrics and X-Request-ID are for
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
