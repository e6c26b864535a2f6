"""API keys: who may talk through a gateway, to which agents, for which tenant, and how much.

A key is `lk_ID_SECRET`. The compacted topic `keys` has, by ID, a hash of the secret and what the key is good for;
every gateway follows it, so that a key is good, or revoked, everywhere within milliseconds.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Self, cast

from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.errors import InputError
from llmagentos.streams.producer import Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.spans import Spans
from llmagentos.streams.topology import named
from llmagentos.streams.wire import Codec

__all__ = ["TENANT", "Key", "create_key", "read_keys", "revoke_key"]

#: Bytes of a secret: it can't be guessed, so that a plain hash of it tells nothing (no password needs stretching here).
SECRET_BYTES: Final = 32
#: Bytes of an id: enough that two keys never share one.
ID_BYTES: Final = 6
_KEY = re.compile(r"lk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")

#: What a tenant may be called: it stands in front of the conversations' ids (agents/gateway/access.py).
TENANT: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of one key; the fields are those of key.avsc.

    Attributes:
        agents: that it may talk to; empty: all.
        expires_at: milliseconds since the epoch; 0: never.
        requests_per_minute, tokens_per_minute: 0: as many as one likes.
    """

    key_id: str
    secret_sha256: bytes
    name: str
    tenant: str
    agents: tuple[str, ...]
    created_at: int
    expires_at: int
    requests_per_minute: int
    tokens_per_minute: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """That of an Avro record."""
        fields: dict[str, Any] = {**record, "agents": tuple(record["agents"])}
        return cls(**fields)

    def record(self) -> dict[str, Any]:
        """The fields as the Avro record."""
        return {name: getattr(self, name) for name in self.__slots__} | {"agents": list(self.agents)}

    @staticmethod
    def split(text: str) -> tuple[str, str] | None:
        """(id, secret) of a key as people have it; None: it is none."""
        found = _KEY.fullmatch(text)
        return None if found is None else cast("tuple[str, str]", found.groups())

    def opens(self, secret: str) -> bool:
        """Whether *secret* is this key's."""
        return hmac.compare_digest(sha256(secret.encode()).digest(), self.secret_sha256)

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return 0 < self.expires_at <= time.time() * 1_000


def create_key(
    settings: Settings,
    *,
    name: str = "",
    tenant: str = "default",
    agents: tuple[str, ...] = (),
    expires_in_s: float = 0,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
) -> tuple[str, Key]:
    """Make a key, and return it as who uses it must give it: that is kept nowhere.

    Raises:
        InputError: *tenant* can't be called so.
        BrokerError, DeliveryError: Kafka did not take it.
    """
    if TENANT.fullmatch(tenant) is None:
        raise InputError(
            f"a tenant can't be called {tenant!r}", fix="1 to 100 letters, digits, dots, hyphens and underscores"
        )
    secret, now = secrets.token_urlsafe(SECRET_BYTES), time.time_ns() // 1_000_000
    key = Key(
        key_id=secrets.token_hex(ID_BYTES),
        secret_sha256=sha256(secret.encode()).digest(),
        name=name,
        tenant=tenant,
        agents=agents,
        created_at=now,
        expires_at=now + int(expires_in_s * 1_000) if expires_in_s else 0,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    _write(settings, key.key_id, key)
    return f"lk_{key.key_id}_{secret}", key


def revoke_key(settings: Settings, key_id: str) -> Key:
    """Have the key of that id, or name, good for nothing from now on.

    Raises:
        InputError: there is none, or several have that name. BrokerError, DeliveryError: Kafka did not take it.
    """
    keys = read_keys(settings)
    found = [key for key in keys if key_id == key.key_id] or [key for key in keys if key_id == key.name]
    if len(found) != 1:
        several = f"{len(found)} keys are named {key_id!r}: {', '.join(key.key_id for key in found)}"
        raise InputError(
            several if found else f"there is no key {key_id!r}", fix="give an id as in `llmagentos key list`"
        )
    _write(settings, found[0].key_id, None)
    return found[0]


def read_keys(settings: Settings) -> list[Key]:
    """All that are not revoked, the oldest first.

    Raises:
        BrokerError: Kafka does not answer.
    """
    spans = Spans(settings, name="keys-reader")
    codec = Codec(open_registry(settings))
    keys: dict[bytes, Key] = {}
    try:
        for batch in spans.whole(settings.topic("keys")):
            for record in batch:
                value, key = record.value(), record.key() or b""
                if value is None:
                    keys.pop(key, None)
                else:
                    keys[key] = Key.of(codec.decode(value))
    finally:
        spans.close()
    return sorted(keys.values(), key=lambda key: key.created_at)


def _write(settings: Settings, key_id: str, key: Key | None) -> None:
    ensure_topics(settings, [named("keys")])
    encode = Codec(open_registry(settings)).writer("llmagentos.Key", "key")

    async def write() -> None:
        async with Producer(settings) as producer:
            producer.produce(settings.topic("keys"), None if key is None else encode(key.record()), key_id.encode())
            await producer.delivered()

    asyncio.run(write())
