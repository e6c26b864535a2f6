"""Access: who calls, which agents and conversations are theirs, and how much they may have.

A tenant's conversations carry its name: `ID` of tenant `acme` is `acme:ID` on every topic, so that no id that a client
makes up is another tenant's. Those of tenant `default`, which the command line uses too, are called as the client says.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmagentos.agents.gateway.keys import Key
from llmagentos.agents.gateway.refusals import Refused
from llmagentos.streams.endpoints import redis_url
from llmagentos.streams.errors import LLMAgentOSError
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Access", "Caller"]

log = logging.getLogger(__name__)

#: What a client may call a conversation; `/` is for those of its parts, and `:` ends a tenant's name.
_CONVERSATION: Final = re.compile(r"[A-Za-z0-9._~@+=-]{1,200}")

#: Limits are counted by the minute: what people reckon in, and a wait that a client can bear.
WINDOW_S: Final = 60
#: For how long Redis is not asked after it failed: each try may cost its connection's timeout.
REDIS_AGAIN_S: Final = 5.0
#: A count is a round trip of a fraction of a millisecond; a request is not to wait for a Redis that hangs.
REDIS_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request.

    Attributes:
        key: None: the gateway is open to all on this machine.
        tenant: whose work it is.
    """

    key: Key | None
    tenant: str

    @property
    def name(self) -> str:
        """As an approval or a cancellation tells it."""
        return "gateway" if self.key is None else f"key {self.key.name or self.key.key_id}"

    def may_use(self, agent: str) -> bool:
        """Whether it may talk to *agent*, and read what that says."""
        return self.key is None or not self.key.agents or agent in self.key.agents

    def use(self, agent: str) -> None:
        """Raise Refused where it may not talk to *agent*."""
        if not self.may_use(agent):
            raise Refused(403, f"this key is not for agent {agent!r}", fix="use a key whose agents include it")

    def conversation(self, name: str) -> str:
        """What the topics call the conversation that this caller calls *name*.

        Raises:
            Refused: it is another tenant's, or can't be called so.
        """
        tenant, colon, own = name.rpartition(":")
        if colon and tenant != self.tenant:
            raise Refused(403, f"conversation {name!r} is not of tenant {self.tenant!r}", fix="use one of your own")
        if _CONVERSATION.fullmatch(own) is None:
            raise Refused(
                400,
                f"a conversation can't be called {name[:300]!r}",
                fix="1 to 200 letters, digits, and the characters . _ ~ @ + = -",
            )
        return own if self.tenant == "default" else f"{self.tenant}:{own}"

    def shown(self, conversation: str) -> str:
        """What the caller calls *conversation*."""
        return conversation if self.tenant == "default" else conversation.removeprefix(f"{self.tenant}:")


class Access:
    """Tells callers by their keys, and keeps them within their limits, over all gateways together.

    Counts are in Redis. Where it does not answer, each gateway counts by itself: a limit is then one per gateway.

    Args:
        keys: by id, as they are now.
        open_to_all: whether no key is needed.
    """

    def __init__(self, settings: Settings, keys: Mapping[str, Key], *, open_to_all: bool) -> None:
        self._settings = settings
        self._keys = keys
        self._open = open_to_all
        self._redis: Redis | None = None
        self._asked_again_at = 0.0
        self._here: dict[str, int] = {}  # counts of this window, where Redis has none
        self._window = 0

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sent a request with these *headers*.

        Raises:
            Refused: no key, or one that is unknown, revoked or expired.
        """
        kind, _, given = headers.get("authorization", "").partition(" ")
        text = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if self._open:
            return Caller(None, "default")
        if not text:
            raise Refused(401, "no API key was given", fix="send `Authorization: Bearer KEY`; `llmagentos key create`")
        parts = Key.split(text)
        key = None if parts is None else self._keys.get(parts[0])
        if parts is None or key is None or not key.opens(parts[1]):
            raise Refused(401, "the API key is wrong or revoked", fix="ask who gave it to you for another")
        if key.expired:
            raise Refused(401, f"the API key {key.name or key.key_id} has expired", fix="ask for another")
        return Caller(key, key.tenant)

    async def admit(self, caller: Caller) -> None:
        """Count a request.

        Raises:
            Refused: the caller has had its share of this minute; says when the next one begins.
        """
        key = caller.key
        if key is None:
            return
        for kind, limit, more in (("requests", key.requests_per_minute, 1), ("tokens", key.tokens_per_minute, 0)):
            if not limit:
                continue
            count = await self._count(key, kind, more)
            if count > limit or (not more and count >= limit):
                left = WINDOW_S - int(time.time()) % WINDOW_S
                raise Refused(
                    429,
                    f"the API key {key.name or key.key_id} has had its {limit:,} {kind} of this minute",
                    fix=f"try again in {left} s",
                    headers={"Retry-After": str(left)},
                )

    async def spend(self, caller: Caller, tokens: int) -> None:
        """Count the tokens of an answer."""
        if caller.key is not None and caller.key.tokens_per_minute and tokens:
            await self._count(caller.key, "tokens", tokens)

    async def stop(self) -> None:
        """Let Redis go."""
        if self._redis is not None:
            await self._redis.aclose()

    async def _count(self, key: Key, kind: str, more: int) -> int:
        """Add *more* to the count of this minute, and return it."""
        window = int(time.time()) // WINDOW_S
        name = f"{self._settings.prefix}gateway:{key.key_id}:{kind}:{window}"
        if time.monotonic() >= self._asked_again_at:
            from redis.exceptions import RedisError

            try:
                redis = self._connected()
                async with redis.pipeline(transaction=True) as pipe:
                    pipe.incrby(name, more)
                    pipe.expire(name, 2 * WINDOW_S)
                    return int((await pipe.execute())[0])
            except (RedisError, LLMAgentOSError, OSError) as error:
                log.warning("limits are counted by this gateway alone, as Redis does not answer: %s", error)
                self._asked_again_at = time.monotonic() + REDIS_AGAIN_S
        if window != self._window:
            self._window = window
            self._here.clear()
        self._here[name] = self._here.get(name, 0) + more
        return self._here[name]

    def _connected(self) -> Redis:
        if self._redis is None:
            from redis.asyncio import Redis

            self._redis = Redis.from_url(
                redis_url(self._settings), socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
            )
        return self._redis
