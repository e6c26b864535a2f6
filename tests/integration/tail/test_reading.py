"""What reading a log promises: each record of a span once, its end found whatever lies there, memory bounded."""

from __future__ import annotations

import confluent_kafka
import pytest

from llmagentos.streams import tail
from llmagentos.streams.admin import ensure_topics
from llmagentos.streams.conversations import Tree, kinds
from llmagentos.streams.endpoints import client_config
from llmagentos.streams.entries import Decoder
from llmagentos.streams.position import BEGINNING, END
from llmagentos.streams.settings import Settings
from llmagentos.streams.tail import Log

from .conftest import Cast


def test_a_partition_that_ends_with_an_aborted_transaction_is_read_to_its_end(settings: Settings) -> None:
    topic = settings.topic("transactional")
    ensure_topics(settings, [(topic, 2, {})])
    producer = confluent_kafka.Producer(client_config(settings, transactional_id=settings.prefix))
    producer.init_transactions()
    for commit in (True, False):
        producer.begin_transaction()
        for number in range(10):
            producer.produce(topic, str(number).encode(), b"k", partition=number % 2)
        producer.flush()
        producer.commit_transaction() if commit else producer.abort_transaction()
    with Log(settings) as log:
        spans = log.spans([(topic, 0), (topic, 1)], BEGINNING, END)
        assert sum(len(span) for span in spans) == 24  # with the markers
        assert len(list(log.read(spans))) == 10


async def test_one_that_runs_ahead_in_time_is_paused_and_nothing_is_lost(
    stage: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "HELD_RECORDS", 200)
    monkeypatch.setattr(tail, "BATCH", 50)
    for number in range(3_000):  # partition 0 is late in time, partition 1 early: the merge must read all of 1 first
        stage.raw("replies", b"x" * 200, 50_000 + number, key=None, partition=0)
        stage.raw("replies", b"x" * 200, number, key=None, partition=1)
    await stage.producer.delivered()
    topic = stage.settings.topic("replies")
    with Log(stage.settings) as log:
        places = [(record.partition(), record.offset()) for record in log.read(
            log.spans([(topic, 0), (topic, 1)], BEGINNING, END)) if record is not None]  # fmt: skip
    assert places == [(1, offset) for offset in range(3_000)] + [(0, offset) for offset in range(3_000)]


async def test_a_tree_is_found_in_few_partitions(stage: Cast) -> None:
    for number in range(20):
        await stage.dialogue(f"order-{number}")
    with Log(stage.settings) as log:
        topics = log.topics()
        partitions = {topic: topics[topic] for topic in kinds(stage.settings, topics)}
        found = Tree(stage.settings, "order-3", partitions)
        entries = found.read(log, Decoder(stage.settings), BEGINNING, END)
        assert len(entries) == 11
        assert len({(e.topic, e.partition, e.offset) for e in entries}) == 11
        assert len(found.places()) <= 4 * len(partitions)  # itself, /1, /2, and a look for /3; of 8 each


async def test_a_conversation_by_another_name_is_found_by_its_answer(stage: Cast) -> None:
    """An agent may ask in a conversation of any name: the answer says where, also in a partition that was read."""
    part = stage.partition("order-1")
    question = stage.child(await stage.dialogue("order-1"), "greeter", 7, "?", to="poet", conversation="elsewhere")
    stage.put("agent.poet", question, 500)
    near = next(f"near-{n}" for n in range(1000) if stage.partition(f"near-{n}") == part)
    other = stage.child(question, "greeter", 8, "?", to="poet", conversation=near)
    stage.put("agent.poet", other, 501)
    for number, asked in enumerate((question, other)):
        answer = stage.child(asked, "poet", 0, "!", to="greeter", type="result")
        stage.put("answers.greeter", answer, 600 + number, key=asked.message_id, partition=part)
    await stage.producer.delivered()
    with Log(stage.settings) as log:
        topics = log.topics()
        tree = Tree(stage.settings, "order-1", {topic: topics[topic] for topic in kinds(stage.settings, topics)})
        entries = tree.read(log, Decoder(stage.settings), BEGINNING, END)
    assert [entry.conversation for entry in entries[-4:]] == ["elsewhere", near, "elsewhere", near]
