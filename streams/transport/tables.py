"""Tables: recovered through a consumer of their own, hand-assigned to the changelogs of the partitions that come.

Faust recovers through the group's assignment, which its assignor makes; librdkafka can't run that assignor, and Faust
then takes every table for recovered while it is empty. So the changelogs are not part of the group here. They follow
the source partitions: whoever gets partition p of a topic that a table may be fed from reads partition p of the
table's changelog to its end before the first message of p is handed out.

For that, all topics of one partition count must be spread alike over the workers. With one such topic they are; with
several, the group uses the range assignor, which spreads them alike, in place of cooperative-sticky.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.tables.manager import TableManager as FaustTableManager
from faust.tables.table import Table as FaustTable
from faust.types import TP
from mode import Service

from llmagentos.streams.errors import BrokerError, SettingsError, TopicError
from llmagentos.streams.gate import CommitGate
from llmagentos.streams.transport.conductor import Received
from llmagentos.streams.transport.poller import insist

__all__ = ["GlobalTable", "Table", "TableManager"]

log = logging.getLogger(__name__)

#: Changelog records applied at once; the event loop has its turn between.
BATCH = 1_000
#: Seconds without a record, while the end isn't reached, after which recovery says that it waits; and gives up.
QUIET_S = 1.0
GIVE_UP_S = 120.0


class Table(FaustTable[Any, Any]):
    """Remembers which partition a key of the in-memory store came with, to forget it with the partition."""

    def _maybe_set_key_ttl(self, key: Any, partition: int) -> None:
        super()._maybe_set_key_ttl(key, partition)
        partitions = getattr(self.data, "_key_partition", None)
        if partitions is not None:
            partitions[key] = partition


class GlobalTable(FaustTable[Any, Any]):
    """Refused: see the error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise SettingsError(
            "global tables are not supported: every worker would write a changelog that every other one reads, and"
            " Faust has no way to tell its own writes from theirs",
            fix="use a Table, and ask the worker that owns a key; or keep shared state in a compacted topic",
        )


class _Recovery(Service):
    """Stands where Faust has its recovery service; the manager does the work."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self.app = app
        self.completed = asyncio.Event()
        self.in_recovery = False
        super().__init__(**kwargs)


class TableManager(FaustTableManager):
    """The app's tables and their recovery."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._active: set[TP] = set()  # changelog partitions whose tables have them
        self._recovering = asyncio.Lock()

    @property
    def recovery(self) -> Any:
        """What Faust's app waits for at the start."""
        if self._recovery is None:
            self._recovery = cast(Any, _Recovery(self.app, beacon=self.beacon, loop=self.loop))
        return self._recovery

    async def on_start(self) -> None:
        """Declare the changelogs."""
        await self._update_channels()
        await self.recovery.start()

    async def _update_channels(self) -> None:
        self._tables_finalized.set()
        for table in self.values():
            await table.maybe_start()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """Stop the tables."""
        await self.recovery.stop()
        for table in self.values():
            await table.stop()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Faust flushes recovery buffers here; there are none between two recoveries."""

    def recovered(self) -> None:
        """The first recovery is over: the app goes on starting."""
        self.recovery.completed.set()
        self.on_actives_ready()
        self.on_standbys_ready()

    # -- which changelogs ---------------------------------------------------------------------------------------

    def _changelogs_for(self, sources: Iterable[TP]) -> dict[TP, Any]:
        """The changelog partitions that belong to *sources*, with their tables."""
        consumer = cast(Any, self.app).consumer
        own = consumer.randomly_assigned_topics | {self.app.conf.reply_to}
        found: dict[TP, Any] = {}
        for table in self.values():
            changelog = table.changelog_topic.get_topic_name()
            count = consumer.topic_partitions(changelog)
            if count is None:
                raise TopicError(
                    f"the changelog {changelog} of table {table.name} is not there",
                    fix="let Faust declare it (topic_allow_declare), or create it, compacted, with as many"
                    " partitions as the table's source topic",
                )
            for tp in sources:
                if tp.topic not in own and consumer.topic_partitions(tp.topic) == count:
                    found[TP(changelog, tp.partition)] = table
        return found

    async def recover(self, new: set[TP]) -> None:
        """Bring the tables up to the end of the changelogs that belong to the *new* source partitions.

        Raises:
            BrokerError: a changelog can't be read.
        """
        if not self:
            return
        async with self._recovering:
            wanted = {tp: table for tp, table in self._changelogs_for(new).items() if tp not in self._active}
            if wanted:
                self.app.in_recovery = True
                try:
                    await self._read(wanted)
                finally:
                    self.app.in_recovery = False
                self._active |= set(wanted)
            for table in self.values():
                active = {tp for tp in self._active if self._changelogs.get(tp.topic) is table}
                await table.on_recovery_completed(active, set())

    def forget(self, gone: set[TP], owned: set[TP]) -> None:
        """Drop from memory what belongs to the *gone* source partitions and to none of the *owned*."""
        if not self:
            return
        left = self._changelogs_for(owned)
        for tp, table in self._changelogs_for(gone).items():
            if tp in left:
                continue
            self._active.discard(tp)
            partitions = getattr(table.data, "_key_partition", None)
            if partitions is None:
                continue  # a store on disk keeps a file for each partition
            for key in [key for key, partition in partitions.items() if partition == tp.partition]:
                table.data.data.pop(key, None)
                del partitions[key]

    # -- reading them -------------------------------------------------------------------------------------------

    async def _read(self, wanted: dict[TP, Any]) -> None:
        transport = cast(Any, self.app).transport
        reader = confluent_kafka.Consumer(transport.reader_config())
        loop = asyncio.get_running_loop()
        try:
            left = await loop.run_in_executor(None, self._seek, reader, wanted)
            total, heard = 0, loop.time()
            while left:
                records = await loop.run_in_executor(None, reader.consume, BATCH, QUIET_S)
                for record in records:
                    error = record.error()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise BrokerError(f"reading the changelog {record.topic()} failed: {error.str()}")
                await self._apply([record for record in records if record.error() is None], wanted)
                total += len(records)
                for part in reader.position([TopicPartition(tp.topic, tp.partition) for tp in left]):
                    tp = TP(part.topic, part.partition)
                    if part.offset >= left[tp]:
                        wanted[tp].data.set_persisted_offset(tp, left.pop(tp) - 1)
                now = loop.time()
                heard = now if records else heard
                if now - heard > GIVE_UP_S:
                    raise BrokerError(
                        f"no record of the changelogs {sorted(left)} came for {GIVE_UP_S:g} s, and their ends are not"
                        " reached, so the tables can't be recovered",
                        fix="see that the brokers run and that the worker may read these topics",
                    )
            log.info("recovered %s changelog partitions: %s records", len(wanted), total)
        except KafkaException as error:
            raise BrokerError(f"the tables' changelogs can't be read: {error}") from error
        finally:
            await loop.run_in_executor(None, reader.close)

    def _seek(self, reader: confluent_kafka.Consumer, wanted: dict[TP, Any]) -> dict[TP, int]:
        """Assign *reader*, and say up to which offset each partition is to be read; the empty ones are left out."""
        parts: list[TopicPartition] = []
        left: dict[TP, int] = {}
        for tp, table in wanted.items():
            low, high = insist(partial(reader.get_watermark_offsets, TopicPartition(*tp), timeout=QUIET_S * 10))
            persisted = table.persisted_offset(tp)
            start = low if persisted is None else max(low, persisted + 1)
            if persisted is not None and persisted >= high:
                raise BrokerError(
                    f"table {table.name} holds offset {persisted} of {tp.topic}[{tp.partition}] on disk, and the"
                    f" changelog ends at {high}: the topic was made anew, or lost its end",
                    fix="remove the table's folder to rebuild it from the changelog",
                )
            if start < high:
                parts.append(TopicPartition(tp.topic, tp.partition, start))
                left[tp] = high
        reader.assign(parts)
        return left

    async def _apply(self, records: list[confluent_kafka.Message], wanted: dict[TP, Any]) -> None:
        batches: dict[Any, list[Any]] = {}
        gate = CommitGate()
        for record in records:
            tp = TP(cast(str, record.topic()), cast(int, record.partition()))
            table = wanted[tp]
            event = await table.changelog_topic.decode(Received(record, tp, gate, 1), propagate=True)
            await table.on_changelog_event(event)
            batches.setdefault(table, []).append(event)
        for table, events in batches.items():
            table.apply_changelog_batch(events)
