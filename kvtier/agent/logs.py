"""The agent's log, on stderr."""

from __future__ import annotations

import json
import logging
import time

from kvtier.agent.log_limit import LogLimit

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s%(note)s"


def configure(level: str, log_format: str) -> None:
    """`log_format` is `text`, or `json` for one object a line. What repeats is limited."""
    handler = logging.StreamHandler()
    text = logging.Formatter(_TEXT, defaults={"note": ""})
    handler.setFormatter(_JsonFormatter() if log_format == "json" else text)
    handler.addFilter(LogLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc").setLevel(logging.WARNING)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() + getattr(record, "note", ""),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)
