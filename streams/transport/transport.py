"""The transport: what Faust finds under the URL scheme `llmagentos`, and the librdkafka configuration."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

from faust.transport.base import Transport as FaustTransport

from llmagentos.streams.endpoints import client_config
from llmagentos.streams.producer import librdkafka_log
from llmagentos.streams.settings import Settings
from llmagentos.streams.transport.conductor import Conductor
from llmagentos.streams.transport.consumer import Consumer, Fetcher
from llmagentos.streams.transport.poller import Poller
from llmagentos.streams.transport.producer import Producer
from llmagentos.streams.transport.rebalance import Rebalance
from llmagentos.streams.transport.stream import quiet

__all__ = ["Transport", "configure"]

#: Kafka's usual port, for URLs without one.
DEFAULT_PORT = 9092
#: librdkafka waits this long (default 1 s) after a fetch queue ran full; the inboxes must not run dry meanwhile.
FETCH_BACKOFF_MS = 5
#: A fetch that finds nothing is answered after this (librdkafka's default is 500 ms), and until then a broker is asked
#: for nothing else: so long would a full partition wait to go on, beside idle ones. Twenty requests a second when idle.
FETCH_WAIT_MS = 50
#: Of what a worker may hold, the part that librdkafka may prefetch; the inboxes bound themselves by the whole.
PREFETCH_SHARE = 4
#: A request to a broker that hangs is given up after this (librdkafka's default is 60 s): a commit that waits for a
#: frozen coordinator holds up reading, and a new coordinator is there within this time.
SOCKET_TIMEOUT_MS = 10_000

_SETTINGS: WeakKeyDictionary[Any, Settings] = WeakKeyDictionary()


def configure(app: Any, settings: Settings) -> None:
    """Give *app* its settings; without this it loads them as every command does. Call it before the app starts."""
    _SETTINGS[app] = settings


class Transport(FaustTransport):
    """Makes the app's consumer, producer and conductor. A URL without host means the settings' brokers."""

    Consumer: ClassVar[Any] = Consumer
    Producer: ClassVar[Any] = Producer
    Conductor: ClassVar[Any] = Conductor
    Fetcher: ClassVar[Any] = Fetcher

    default_port = DEFAULT_PORT
    driver_version = "librdkafka"

    def __init__(self, url: Any, app: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(url, app, loop)
        self._settings: Settings | None = None
        self._rebalance: Rebalance | None = None

    @property
    def settings(self) -> Settings:
        """The app's settings, with the brokers of its URL."""
        if self._settings is None:
            settings = _SETTINGS.get(self.app) or Settings.load()
            hosts = ",".join(f"{url.host}:{url.port or DEFAULT_PORT}" for url in self.url if url.host)
            self._settings = settings.model_copy(update={"brokers": hosts}) if hosts else settings
        return self._settings

    @property
    def rebalance(self) -> Rebalance:
        """The app's side of rebalances."""
        if self._rebalance is None:
            self._rebalance = Rebalance(self.app)
        return self._rebalance

    def quiet(self) -> bool:
        """Whether no sensor but the default monitor listens to single messages."""
        return quiet(self.app)

    def producer_properties(self) -> dict[str, Any]:
        """What the app sets for its producer, as librdkafka properties with `_` for `.`."""
        return {"client_id": cast(Any, self.app).conf.broker_client_id}

    def reader_config(self) -> dict[str, Any]:
        """For a consumer without a group, assigned by hand."""
        return {"logger": librdkafka_log} | client_config(
            self.settings,
            group_id=f"{self.app.conf.id}-changelogs",  # librdkafka demands one; nothing is committed under it
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="error",
            isolation_level="read_committed",
            fetch_wait_max_ms=FETCH_WAIT_MS,
            allow_auto_create_topics=False,
        )

    def group_config(self, topics: set[str]) -> dict[str, Any]:
        """For the member of the app's group that reads *topics*."""
        settings, conf = self.settings, cast(Any, self.app).conf
        config = client_config(
            settings,
            group_id=conf.id,
            client_id=conf.broker_client_id,
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.heartbeat_interval_ms,
            partition_assignment_strategy=self._strategy(topics),
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="error",  # where to start is decided in the open: see Poller
            isolation_level="read_committed",
            fetch_queue_backoff_ms=FETCH_BACKOFF_MS,
            fetch_wait_max_ms=FETCH_WAIT_MS,
            queued_max_messages_kbytes=max(1_024, settings.max_in_flight_bytes // PREFETCH_SHARE // 1_024),
            reconnect_backoff_max_ms=1_000,  # librdkafka's 10 s is long for a broker that restarts in 4 s
            allow_auto_create_topics=False,  # see check_topics
            socket_timeout_ms=SOCKET_TIMEOUT_MS,
        )
        config["logger"] = librdkafka_log  # the poll thread tells of its errors; these lines come 20 times a second
        if conf.consumer_group_instance_id:
            config["group.instance.id"] = conf.consumer_group_instance_id
        if config.get("group.protocol") == "consumer":  # KIP-848: the broker holds these
            for name in ("session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"):
                config.pop(name)
        return config

    def _strategy(self, topics: set[str]) -> str:
        """Range where tables need several topics spread alike (see :mod:`.tables`); it is not incremental."""
        app = cast(Any, self.app)
        if not app.tables:
            return "cooperative-sticky"
        own = app.consumer.randomly_assigned_topics | {app.conf.reply_to}
        return "range" if len(topics - own) > 1 else "cooperative-sticky"

    def new_poller(self, owner: Consumer, topics: set[str]) -> Poller:
        """The reader of *topics*."""
        config = self.reader_config() if self.app.client_only else self.group_config(topics)
        cooperative = config.get("partition.assignment.strategy", "cooperative-sticky") == "cooperative-sticky"
        return Poller(config, owner, asyncio.get_running_loop(), cooperative=cooperative)

    def create_consumer(self, callback: Any, **kwargs: Any) -> Any:
        """The app's consumer."""
        return self.Consumer(self, callback=callback, loop=self.loop, **kwargs)
