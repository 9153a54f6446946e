"""The log: one JSON object a line on standard error, with the request's id where there is one.

Neither audio nor text nor tokens are in it, and paths are without their query.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

_FIELDS = ("request_id", "path", "cause", "seconds", "audio_seconds", "code", "reason", "worker", "text")


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": os.getpid(),
        }
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logs(level: str = "info") -> None:
    """Write this process's log as JSON lines; of the websockets library only errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
