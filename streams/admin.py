"""Topics and groups of a Kafka cluster: make, describe, delete; and Kafka's errors in our words.

Everything here blocks: from a coroutine, call it through ``asyncio.to_thread``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from llmagentos.streams.endpoints import brokers, client_config
from llmagentos.streams.errors import AccessError, BrokerError, LLMAgentOSError, RecordTooLarge, TopicError
from llmagentos.streams.settings import Settings
from llmagentos.streams.topology import Topic

__all__ = [
    "ASK_AGAIN_S",
    "NEW_LEADER",
    "Admin",
    "Cluster",
    "TopicDescription",
    "TopicSpec",
    "ensure_topics",
    "partitions_of",
    "translate",
]

T = TypeVar("T")

#: A topic to make: one of the topology, or (full name, partitions, Kafka's topic configuration).
TopicSpec = Topic | tuple[str, int, Mapping[str, str]]

#: Where three brokers are, a record survives one of them; where fewer are, as many as there are.
_REPLICAS = 3

#: How long one wait for metadata is.
_SLICE_S = 1.0
#: Brokers that all refuse the connection for so long are not just restarting (a local one takes 1 to 5 s).
_REFUSED_S = 6.0

_OUT_OF_REACH = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._RESOLVE,
    KafkaError.REQUEST_TIMED_OUT,
}
#: Of a group whose coordinator was just made, is loading or has moved: gone in a moment.
_PASSING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}
#: A partition has a new leader, or its first, and not all of the cluster know yet.
NEW_LEADER = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
}
#: What will pass is asked again after this.
ASK_AGAIN_S = 0.05
#: What a commit of one who is no member is refused with, while the group has members.
_HAS_MEMBERS = {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS}
_LOGIN = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM}
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_ALREADY_EXISTS,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_CONFIG,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_DELETION_DISABLED,
}


def translate(
    error: KafkaError | KafkaException, settings: Settings, doing: str, *, topic: str = "", kept: str = ""
) -> LLMAgentOSError:
    """Kafka's *error* as one of ours.

    Args:
        doing: what was tried, as "produce to topic x" or "list the topics".
        topic: its full name, where it was about one.
        kept: what was kept.

    Returns:
        An AccessError, TopicError, RecordTooLarge or BrokerError, not raised.
    """
    cause: KafkaError = error.args[0] if isinstance(error, KafkaException) else error
    code, text = cause.code(), cause.str() or cause.name()
    user = f"user {settings.sasl_username!r}" if settings.sasl_username else "a client without a user name"
    if code in _LOGIN:
        return AccessError(
            f"can't {doing}: Kafka at {_place(settings)} refused the login of {user}"
            f" ({settings.sasl_mechanism or settings.security_protocol}): {text}",
            fix="check LLMAGENTOS_SASL_USERNAME, LLMAGENTOS_SASL_PASSWORD, LLMAGENTOS_SASL_MECHANISM "
            "and LLMAGENTOS_SECURITY_PROTOCOL (docs/howto/clusters.md)",
            kept=kept,
        )
    if code == KafkaError._SSL:
        return AccessError(
            f"can't {doing}: no TLS connection to Kafka at {_place(settings)}: {text}",
            fix="check LLMAGENTOS_SECURITY_PROTOCOL, LLMAGENTOS_SSL_CA, LLMAGENTOS_SSL_CERTIFICATE "
            "and LLMAGENTOS_SSL_KEY (docs/howto/clusters.md)",
            kept=kept,
        )
    if code in _DENIED:
        about = f" on topic {topic}" if topic else ""
        return AccessError(
            f"can't {doing}: Kafka denies it to {user}{about}: {text}",
            fix="ask who runs the cluster for the ACLs that docs/howto/clusters.md lists",
            kept=kept,
        )
    if code == KafkaError.MSG_SIZE_TOO_LARGE:
        return RecordTooLarge(
            f"can't {doing}: the record is larger than the topic takes: {text}",
            cause="too_large",
            fix="make it smaller, or raise max.message.bytes of the topic and LLMAGENTOS_MAX_MESSAGE_BYTES",
            kept=kept,
        )
    if code in _OUT_OF_REACH:
        return BrokerError(
            f"can't {doing}: Kafka at {_place(settings)} is out of reach: {text}",
            fix="`llmagentos status` shows the local node; for a cluster check LLMAGENTOS_BROKERS, "
            "LLMAGENTOS_SECURITY_PROTOCOL and the network",
            kept=kept,
        )
    if code in _TOPIC:
        return TopicError(
            f"can't {doing}: {text}",
            fix="`llmagentos topics` lists what there is; deploying an agent makes its topics",
            kept=kept,
        )
    return BrokerError(f"can't {doing}: {text} ({cause.name()})", fix="`llmagentos doctor` looks for it", kept=kept)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Kafka cluster: its id, the numbers and places of its brokers, and its controller's number."""

    cluster_id: str
    brokers: Mapping[int, str]
    controller: int


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic that there is.

    Attributes:
        name: in full.
        partitions: how many.
        replicas: of the partition that has the fewest.
        in_sync: of the partition that has the fewest in-sync replicas.
        leaderless: partitions that nobody can write to now.
    """

    name: str
    partitions: int
    replicas: int
    in_sync: int
    leaderless: tuple[int, ...] = ()


class Admin:
    """One connection for administration; thread-safe. Raises AccessError, TopicError and BrokerError.

    Args:
        settings: name the cluster.
        timeout_s: for each call, in all.
    """

    def __init__(self, settings: Settings, timeout_s: float = 30.0) -> None:
        self.settings = settings
        self.timeout_s = timeout_s
        self._heard: list[KafkaError] = []
        # What a login that fails, or a closed port, looks like is only told to error_cb; calls just time out.
        # librdkafka's own log lines would say it a second time, on stderr.
        config: dict[str, Any] = client_config(settings) | {
            "error_cb": self._heard.append,
            "log_level": 0,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
        }
        try:
            self._client = AdminClient(config)
        except KafkaException as error:
            raise translate(error, settings, "make a Kafka client") from error

    # -- what there is

    def cluster(self) -> Cluster:
        """The cluster's id and brokers."""
        metadata = self._metadata("ask Kafka for its brokers")
        places = {number: f"{b.host}:{b.port}" for number, b in metadata.brokers.items()}
        return Cluster(metadata.cluster_id, places, metadata.controller_id)

    def topics(self, prefix: str = "") -> dict[str, TopicDescription]:
        """Every topic whose full name starts with *prefix*, by name; Kafka's own left out."""
        found = self._metadata("list the topics").topics
        return {
            name: _describe(found[name])
            for name in sorted(found)
            if name.startswith(prefix) and not name.startswith("__") and found[name].error is None
        }

    def describe(self, name: str) -> TopicDescription:
        """The topic *name*, in full.

        Raises:
            TopicError: there is none.
        """
        doing = f"describe topic {name}"
        topic = self._metadata(doing, name).topics[name]
        if topic.error is not None:
            raise translate(topic.error, self.settings, doing, topic=name)
        return _describe(topic)

    def topic_id(self, name: str) -> str:
        """What tells the topic *name* from another of that name, made later or in another cluster.

        Raises:
            TopicError: there is none.
        """
        doing = f"ask for the id of topic {name}"
        future = self._client.describe_topics(TopicCollection([name]), request_timeout=self.timeout_s)[name]
        found = self._result(future, doing, topic=name)
        number = (found.topic_id.get_most_significant_bits(), found.topic_id.get_least_significant_bits())
        # Brokers before Kafka 2.8, and some that only speak its protocol, have none.
        return f"{found.topic_id}" if any(number) else f"{self.cluster().cluster_id}/{name}"

    def config(self, name: str) -> dict[str, str]:
        """The topic configuration of *name*, defaults included."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        doing = f"read the configuration of topic {name}"
        entries = self._result(self._client.describe_configs([resource])[resource], doing, topic=name)
        return {key: entry.value for key, entry in entries.items() if entry.value is not None}

    def offsets(self, name: str, at: int | OffsetSpec) -> dict[int, int]:
        """An offset of each partition of *name*.

        Args:
            at: `OffsetSpec.earliest()`, `OffsetSpec.latest()`, or milliseconds since 1970: the first record at
                or after that moment, the end where there is none.
        """
        partitions = range(self.describe(name).partitions)
        spec = OffsetSpec.for_timestamp(at) if isinstance(at, int) else at
        found = self._offsets(name, partitions, spec)
        after = [partition for partition, offset in found.items() if offset < 0]
        if after:
            found |= self._offsets(name, after, cast(OffsetSpec, OffsetSpec.latest()))  # its stub says it may be None
        return found

    def groups(self) -> list[str]:
        """Every consumer group's id."""
        doing = "list the consumer groups"
        result = self._result(self._client.list_consumer_groups(request_timeout=self.timeout_s), doing)
        if result.errors:
            raise translate(result.errors[0], self.settings, doing)
        return sorted(group.group_id for group in result.valid)

    def committed(self, group: str, topics: Iterable[str]) -> dict[tuple[str, int], int]:
        """The offset that *group* committed for each (topic, partition) of *topics*; those without one left out."""
        return {place: offset for place, (offset, _) in self.commits(group, topics).items()}

    def commits(self, group: str, topics: Iterable[str]) -> dict[tuple[str, int], tuple[int, str]]:
        """As :meth:`committed`, with the metadata beside each offset.

        Asks by a consumer that joins nothing: AdminClient's own list_consumer_group_offsets kills the process
        (librdkafka issue 5040, still open) where the group's coordinator is just loading or has just moved.
        """
        doing = f"read the committed offsets of group {group}"
        asked = [TopicPartition(name, number) for name in topics for number in range(self.describe(name).partitions)]
        consumer = Consumer(client_config(self.settings) | {"group.id": group, "log_level": 0})
        deadline = time.monotonic() + self.timeout_s
        try:
            while True:
                try:
                    found = consumer.committed(asked, timeout=self.timeout_s)
                    break
                except KafkaException as error:
                    if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                        raise translate(error, self.settings, doing) from error
                    time.sleep(ASK_AGAIN_S)
        finally:
            consumer.close()
        for tp in found:
            if tp.error is not None:
                raise translate(tp.error, self.settings, doing, topic=tp.topic)
        return {(tp.topic, tp.partition): (tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}

    def commit(self, group: str, offsets: Mapping[tuple[str, int], tuple[int, str]]) -> None:
        """Commit for *group*, which has no members.

        Args:
            offsets: offset and metadata by (topic, partition); all of them or none are committed.

        Raises:
            BrokerError: it has members; nothing is committed.
        """
        doing = f"commit offsets for group {group}"
        parts = [TopicPartition(*place, offset, metadata) for place, (offset, metadata) in offsets.items()]
        consumer = Consumer(client_config(self.settings) | {"group.id": group, "log_level": 0})
        deadline = time.monotonic() + self.timeout_s
        try:
            while True:
                try:
                    found = consumer.commit(offsets=parts, asynchronous=False) or []
                    break
                except KafkaException as error:
                    code = error.args[0].code()
                    if code in _HAS_MEMBERS:
                        raise BrokerError(
                            f"can't {doing}: it has members",
                            fix="stop all workers of the deployment, on other machines too",
                            kept="the committed offsets, as they were",
                        ) from error
                    if code not in _PASSING or time.monotonic() > deadline:
                        raise translate(error, self.settings, doing) from error
                    time.sleep(ASK_AGAIN_S)
        finally:
            consumer.close()
        for tp in found:
            if tp.error is not None:
                raise translate(tp.error, self.settings, doing, topic=tp.topic)

    def members(self, groups: Sequence[str]) -> dict[str, list[set[tuple[str, int]]]]:
        """The (topic, partition)s of each live member of each group; a group that is unknown has no members."""
        found: dict[str, list[set[tuple[str, int]]]] = {group: [] for group in groups}
        futures = self._client.describe_consumer_groups(list(groups), request_timeout=self.timeout_s) if groups else {}
        for group, future in futures.items():
            try:
                described = self._result(future, f"describe group {group}")
            except BrokerError as error:
                cause = error.__cause__
                if isinstance(cause, KafkaException) and cause.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                    continue
                raise
            for member in described.members:
                places = member.assignment.topic_partitions if member.assignment is not None else ()
                found[group].append({(tp.topic, tp.partition) for tp in places})
        return found

    # -- what there shall be

    def ensure(self, topics: Iterable[TopicSpec]) -> list[str]:
        """Make those of *topics* that are missing, and wait until brokers know them; return their names.

        Raises:
            TopicError: one is there with another number of partitions.
        """
        wanted = dict(self._spec(topic) for topic in topics)
        there = self._metadata("list the topics")
        lacking = {name: spec for name, spec in wanted.items() if name not in there.topics}
        if lacking:
            replicas = self.settings.replication or min(_REPLICAS, len(there.brokers))
            new = [NewTopic(name, parts, replicas, config=dict(config)) for name, (parts, config) in lacking.items()]
            for name, future in self._client.create_topics(new, request_timeout=self.timeout_s).items():
                try:
                    self._result(future, f"make topic {name}", topic=name)
                except TopicError as error:
                    cause = error.__cause__
                    raced = isinstance(cause, KafkaException) and (
                        cause.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS
                    )
                    if not raced:  # another client made it meanwhile: then its partitions count, below
                        raise
        self._wait_for(wanted, list(lacking))
        return list(lacking)

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics, with all their records.

        Raises:
            TopicError: one doesn't exist.
        """
        if names:
            for name, future in self._client.delete_topics(list(names), request_timeout=self.timeout_s).items():
                self._result(future, f"delete topic {name}", topic=name)

    # -- how

    def _spec(self, topic: TopicSpec) -> tuple[str, tuple[int, Mapping[str, str]]]:
        if isinstance(topic, Topic):
            return self.settings.topic(topic.name), (topic.partitions or self.settings.partitions, topic.config)
        name, partitions, config = topic
        return name, (partitions, config)

    def _wait_for(self, wanted: Mapping[str, tuple[int, Mapping[str, str]]], new: Collection[str]) -> None:
        """Until every topic has a leader for each partition: a client that is too early would be told it's unknown."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            found = self._metadata("list the topics").topics
            for name, (partitions, _) in wanted.items():
                actual = len(found[name].partitions) if name in found and found[name].error is None else 0
                if actual not in (0, partitions):
                    raise TopicError(
                        f"topic {name} has {actual} partitions, but {partitions} are asked for; "
                        "a topic's partitions are fixed at its birth",
                        kept="the topic and its records, untouched",
                        fix=f"set LLMAGENTOS_PARTITIONS={actual}, or use another LLMAGENTOS_PREFIX, "
                        "or delete the topic with all its records",
                    )
            waiting = [name for name in wanted if name not in found or not _ready(found[name])]
            if not waiting and (not new or self._all_know(new)):
                return
            waiting += new
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"topic {waiting[0]} has no leader for all its partitions after {self.timeout_s:.0f} s",
                    fix="see whether all brokers run: `llmagentos status`",
                )
            time.sleep(0.02)

    def _all_know(self, names: Collection[str]) -> bool:
        """Whether each broker knows *names*. Brokers hear of a new topic one after the other, and any may be asked
        next: so each is asked by a client that has just met it, and knows no other yet."""
        places = self.cluster().brokers.values()
        for place in places if len(places) > 1 else ():
            client = AdminClient(client_config(self.settings) | {"bootstrap.servers": place, "log_level": 0})
            try:
                found = client.list_topics(timeout=_SLICE_S).topics
            except KafkaException:
                continue  # it has just died, then nobody is told anything by it; or it can't be seen from here
            if not all(name in found and _ready(found[name]) for name in names):
                return False
        return True

    def _offsets(self, name: str, partitions: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
        request = {TopicPartition(name, partition): spec for partition in partitions}
        doing = f"look up offsets of topic {name}"
        deadline = time.monotonic() + self.timeout_s
        while True:
            futures = self._client.list_offsets(request, request_timeout=self.timeout_s)
            try:
                return {tp.partition: self._result(future, doing, topic=name).offset for tp, future in futures.items()}
            except BrokerError as error:
                cause = error.__cause__
                passing = isinstance(cause, KafkaException) and cause.args[0].code() in NEW_LEADER
                if not passing or time.monotonic() > deadline:
                    raise
            time.sleep(ASK_AGAIN_S)

    def _metadata(self, doing: str, topic: str | None = None) -> Any:
        """In short waits, for why there is no answer is only told to error_cb, between them."""
        began = time.monotonic()
        with self._translated(doing, topic or ""):
            while True:
                left_s = began + self.timeout_s - time.monotonic()
                try:
                    return self._client.list_topics(topic, timeout=min(max(left_s, 0.1), _SLICE_S))
                except KafkaException as error:
                    self._client.poll(0)
                    heard = {e.code() for e in self._heard}
                    waited_s = time.monotonic() - began
                    hopeless = heard & _LOGIN or KafkaError._SSL in heard
                    refused = KafkaError._ALL_BROKERS_DOWN in heard and waited_s > _REFUSED_S
                    if hopeless or refused or left_s <= 0 or error.args[0].code() not in _OUT_OF_REACH:
                        raise

    def _result(self, future: Future[T], doing: str, topic: str = "") -> T:
        with self._translated(doing, topic):
            return future.result(self.timeout_s + 5)  # librdkafka's own limit comes first

    @contextmanager
    def _translated(self, doing: str, topic: str) -> Generator[None]:
        self._heard.clear()
        try:
            yield
        except KafkaException as error:
            raise translate(self._cause(error.args[0]), self.settings, doing, topic=topic) from error
        except TimeoutError as error:
            raise BrokerError(f"can't {doing}: no answer from Kafka at {_place(self.settings)}") from error

    def _cause(self, error: KafkaError) -> KafkaError:
        """Where a call just ran out of time: what error_cb was told meanwhile."""
        if error.code() not in _OUT_OF_REACH:
            return error
        self._client.poll(0)
        telling: list[Callable[[KafkaError], bool]] = [
            lambda e: e.code() in _LOGIN or e.code() == KafkaError._SSL,
            lambda e: e.code() in (KafkaError._RESOLVE, KafkaError._TRANSPORT),
        ]
        for tells in telling:
            for heard in self._heard:
                if tells(heard):
                    return heard
        return error


def ensure_topics(settings: Settings, topics: Iterable[TopicSpec]) -> list[str]:
    """Make those of *topics* that are missing; return their names. See :meth:`Admin.ensure`."""
    return Admin(settings).ensure(topics)


def partitions_of(settings: Settings, topic: str) -> int:
    """How many partitions the topic of that full name has; TopicError where there is none."""
    return Admin(settings).describe(topic).partitions


def _describe(topic: Any) -> TopicDescription:
    partitions = topic.partitions.values()
    return TopicDescription(
        name=topic.topic,
        partitions=len(partitions),
        replicas=min((len(p.replicas) for p in partitions), default=0),
        in_sync=min((len(p.isrs) for p in partitions), default=0),
        leaderless=tuple(sorted(p.id for p in partitions if p.leader < 0)),
    )


def _ready(topic: Any) -> bool:
    return topic.error is None and bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())


def _place(settings: Settings) -> str:
    return brokers(settings)
