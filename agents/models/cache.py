"""Answers kept by what was asked: the same question of the same tenant to the same model is not paid twice.

They are in Redis, for as long as the model's `cache_s` says. Without Redis the model is asked.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from typing import Any, Final

import orjson
import redis.asyncio
from redis.exceptions import RedisError

from llmagentos.agents.models.provider import Call, Request, Turn
from llmagentos.streams.endpoints import redis_url
from llmagentos.streams.errors import BrokerError
from llmagentos.streams.settings import ModelSettings, Settings

__all__ = ["Cache"]

log = logging.getLogger(__name__)

#: A Redis that answers at all does so within milliseconds; to wait longer costs more than it may bring.
_ANSWER_S: Final = 1.0


class Cache:
    """See the module; one for a worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def key(self, tenant: str, name: str, model: ModelSettings, request: Request) -> str:
        """What an answer is kept under: all that it depends on."""
        asked: list[Any] = [tenant, name, model.model_dump(mode="json", include={"provider", "model", "base_url"})]
        digest = hashlib.sha256(orjson.dumps([*asked, asdict(request)])).hexdigest()
        return f"{self._settings.prefix}answer:{digest}"

    async def get(self, key: str) -> Turn | None:
        """The answer that is kept; None: there is none."""
        try:
            async with self._client() as client:
                raw = await client.get(key)
        except (RedisError, BrokerError) as error:
            log.warning("answers that are kept can't be looked up, the model is asked: %s", error)
            return None
        if raw is None:
            return None
        kept = orjson.loads(raw)
        return Turn(**kept | {"calls": tuple(Call(**call) for call in kept["calls"])})

    async def put(self, key: str, turn: Turn, seconds: float) -> None:
        """Keep an answer."""
        try:
            async with self._client() as client:
                await client.set(key, orjson.dumps(asdict(turn)), px=max(1, int(seconds * 1_000)))
        except (RedisError, BrokerError) as error:
            log.warning("an answer can't be kept: %s", error)

    def _client(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(
            redis_url(self._settings), socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S
        )
