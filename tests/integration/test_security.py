"""A cluster with TLS, SCRAM and ACLs: what a client that may not is told, and that one that may gets in."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from pydantic import SecretStr

from llmagentos.streams.admin import Admin, ensure_topics, translate
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.errors import AccessError, BrokerError, DeliveryError
from llmagentos.streams.node import Node
from llmagentos.streams.producer import Producer as Sender
from llmagentos.streams.registry_log import LogRegistry
from llmagentos.streams.settings import Settings

MODULE = "org.apache.kafka.common.security"


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a broker's certificate by it, and an authority that nobody asked."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem",
        )  # fmt: skip
    openssl(
        "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1",
        "-keyout", folder / "broker.key", "-out", folder / "broker.csr",
    )  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", folder / "broker.csr", "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key",
        "-CAcreateserial", "-days", "2", "-extfile", folder / "names", "-out", folder / "broker.pem",
    )  # fmt: skip
    both = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "keystore.pem").write_text(both)
    return folder


@pytest.fixture(scope="module")
def root(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of the super user of a secured cluster, which runs."""
    plain = f'{MODULE}.plain.PlainLoginModule required username="broker" password="b" user_broker="b";'
    properties = {
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:SASL_SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates / "keystore.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates / "ca.pem"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:broker;User:root",
        # Users by SCRAM are in the metadata log, which brokers must reach before they can read it: those use PLAIN.
        "sasl.enabled.mechanisms": "SCRAM-SHA-256,PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.clients.plain.sasl.jaas.config": plain,
        "listener.name.controller.plain.sasl.jaas.config": plain,
        "listener.name.clients.scram-sha-256.sasl.jaas.config": f"{MODULE}.scram.ScramLoginModule required;",
    }
    settings = Settings(
        home=tmp_path_factory.mktemp("secured"),
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username="root",
        sasl_password=SecretStr("r"),
        ssl_ca=certificates / "ca.pem",
    )
    users = ["SCRAM-SHA-256=[name=root,password=r]", "SCRAM-SHA-256=[name=alice,password=a]"]
    node = Node(settings, broker_properties=properties, scram=users)
    try:
        node.up()
        yield settings
    finally:
        node.down()


def alice(root: Settings, **other: object) -> Settings:
    return root.model_copy(update={"sasl_username": "alice", "sasl_password": SecretStr("a")} | other)


def test_a_wrong_password_is_told_at_once(root: Settings):
    wrong = alice(root, sasl_password=root.sasl_password)
    began = time.monotonic()
    with pytest.raises(AccessError, match="refused the login of user 'alice' \\(SCRAM-SHA-256\\)") as caught:
        Admin(wrong).topics()
    assert time.monotonic() - began < 15
    assert "LLMAGENTOS_SASL_PASSWORD" in caught.value.fix
    assert "howto/clusters" in caught.value.fix
    assert "'r'" not in str(caught.value)


def test_an_unknown_authority_is_told(root: Settings, certificates: Path):
    with pytest.raises(AccessError, match="no TLS connection to Kafka") as caught:
        Admin(alice(root, ssl_ca=certificates / "other.pem")).topics()
    assert "LLMAGENTOS_SSL_CA" in caught.value.fix


def test_no_tls_where_there_must_be_does_not_get_in(root: Settings):
    with pytest.raises(BrokerError) as caught:
        Admin(alice(root, security_protocol="SASL_PLAINTEXT"), timeout_s=2).topics()
    assert "LLMAGENTOS_SECURITY_PROTOCOL" in caught.value.fix


def test_denied_then_allowed(root: Settings):
    user = alice(root)
    topic = user.topic("secured")
    with pytest.raises(AccessError, match=f"denies it to user 'alice' on topic {topic}") as caught:
        ensure_topics(user, [(topic, 1, {})])
    assert "ACLs" in caught.value.fix
    ensure_topics(root, [(topic, 1, {})])

    errors: list[object] = []
    producer = Producer(client_config(user, enable_idempotence=True) | {"log_level": 0})
    producer.produce(topic, b"x", on_delivery=lambda error, _: errors.append(error))
    producer.flush(20)
    (denied,) = errors
    translated = translate(denied, user, f"produce to topic {topic}", topic=topic)  # pyright: ignore[reportArgumentType]
    assert isinstance(translated, AccessError)
    assert topic in translated.what

    client = AdminClient(client_config(root))
    rights = [
        AclBinding(kind, name, pattern, "User:alice", "*", AclOperation.ALL, AclPermissionType.ALLOW)
        for kind, name, pattern in (
            (ResourceType.TOPIC, root.prefix, ResourcePatternType.PREFIXED),
            (ResourceType.GROUP, root.prefix, ResourcePatternType.PREFIXED),
        )
    ]
    for future in client.create_acls(rights).values():
        future.result(20)
    producer = Producer(client_config(user, enable_idempotence=True))
    errors.clear()
    producer.produce(topic, b"x", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(20) == 0
    assert errors == [None]
    assert ensure_topics(user, [(user.topic("another"), 1, {})]) == [user.topic("another")]
    assert Admin(user).topics(user.prefix).keys() == {topic, user.topic("another")}
    assert Admin(user).committed(user.topic("group"), [topic]) == {}


async def test_sending_with_a_wrong_password_fails_at_once(root: Settings):
    """Librdkafka would try for the delivery timeout, two minutes."""
    began = time.monotonic()
    async with Sender(alice(root, sasl_password=root.sasl_password)) as sender:
        sender.produce("x", b"v", b"c-1")
        with pytest.raises(DeliveryError, match="refused the login of user 'alice'") as caught:
            await sender.delivered()
    assert time.monotonic() - began < 15
    assert isinstance(caught.value.__cause__, AccessError)
    assert "LLMAGENTOS_SASL_PASSWORD" in caught.value.fix


async def test_sending_is_denied_then_allowed(root: Settings):
    root = root.model_copy(update={"prefix": "sending."})  # alice may have rights under the other already
    topic = root.topic("agent.sent")
    ensure_topics(root, [(topic, 1, {})])
    async with Sender(alice(root)) as sender:
        sender.produce(topic, b"v", b"c-1")
        with pytest.raises(DeliveryError, match="Kafka denies it to user 'alice'") as caught:
            await sender.delivered()
    assert isinstance(caught.value.__cause__, AccessError)
    allow(root, ResourceType.TOPIC, topic, AclOperation.WRITE)
    async with Sender(alice(root)) as sender:
        sender.produce(topic, b"v", b"c-1")
        await sender.delivered()


def test_registering_a_schema_is_denied_then_allowed(root: Settings):
    root = root.model_copy(update={"prefix": "registering."})
    schema = {"type": "record", "name": "R", "fields": []}
    topic = root.topic("schemas")
    assert LogRegistry(root).register("R", schema) == 1
    with pytest.raises(AccessError, match="denies it to user 'alice'"):
        LogRegistry(alice(root)).schema(1)
    allow(root, ResourceType.TOPIC, topic, AclOperation.READ)
    registry = LogRegistry(alice(root))
    assert registry.schema(1) == schema
    assert registry.register("R", schema) == 1, "what is there can be looked up by who may only read"
    other = schema | {"name": "S"}
    with pytest.raises(AccessError, match=f"transactional id {topic}-writer"):
        registry.register("S", other)
    allow(root, ResourceType.TOPIC, topic, AclOperation.WRITE)
    allow(root, ResourceType.TRANSACTIONAL_ID, f"{topic}-writer", AclOperation.WRITE)
    assert registry.register("S", other) == 2


def allow(root: Settings, kind: ResourceType, name: str, operation: AclOperation) -> None:
    binding = AclBinding(kind, name, ResourcePatternType.LITERAL, "User:alice", "*", operation, AclPermissionType.ALLOW)
    client = AdminClient(client_config(root))
    for future in client.create_acls([binding]).values():
        future.result(10)
