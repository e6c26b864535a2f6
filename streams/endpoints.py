"""Where Kafka and Redis are: what the settings name, or the local node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmagentos.streams.errors import BrokerError
from llmagentos.streams.settings import Settings

__all__ = ["ENDPOINTS_FILE", "brokers", "client_config", "redis_url"]

#: In the data folder, written by the node while it runs: `{"brokers": "127.0.0.1:N", "redis": "redis://..."}`.
ENDPOINTS_FILE = "endpoints.json"


def _of_node(home: Path, key: str) -> str:
    try:
        return json.loads((home / ENDPOINTS_FILE).read_text(encoding="utf-8"))[key]
    except (FileNotFoundError, KeyError):  # a node may have only one of the two, as the settings name the other
        raise BrokerError(
            f"no {key} known: LLMAGENTOS_{key.upper()} is not set, and no local node runs in {home}",
            fix=f"start one with `llmagentos up`, or set LLMAGENTOS_{key.upper()}",
        ) from None


def brokers(settings: Settings) -> str:
    """Kafka's `bootstrap.servers`.

    Raises:
        BrokerError: neither the settings nor a running local node name one.
    """
    return settings.brokers or _of_node(settings.home, "brokers")


def redis_url(settings: Settings) -> str:
    """Redis' URL; raises as :func:`brokers` does."""
    return settings.redis or _of_node(settings.home, "redis")


def client_config(settings: Settings, **properties: Any) -> dict[str, Any]:
    """librdkafka properties for a client: place, security, then *properties* with `_` for `.`."""
    config: dict[str, Any] = {"bootstrap.servers": brokers(settings), **settings.security()}
    config |= {name.replace("_", "."): value for name, value in properties.items()}
    return config
