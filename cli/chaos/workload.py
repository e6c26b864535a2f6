"""The input of a chaos run, made from its seed and written to a file, and its production into the first agent's inbox.

The file is all that the oracle knows of what must be: one line a send, in the order of sending.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from llmagentos.cli.chaos.scenarios import Scenario
from llmagentos.streams.delivery import Delivery
from llmagentos.streams.errors import InputError, LLMAgentOSError
from llmagentos.streams.message import Message
from llmagentos.streams.producer import MESSAGE_ID, Producer
from llmagentos.streams.registry import open_registry
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["AGENTS", "Line", "Production", "data_folder", "make_input", "read_input", "write_input"]

#: The chain, in its order.
AGENTS = ("first", "second", "third")

Waits = Literal["", "timer", "person"]

Poison = Literal["", "undecodable", "first", "second", "third"]

#: The real dialogues, in the folder that LLMAGENTOS_DATA names.
DIALOGUES = "sgd_train.ndjson.gz"

#: Turns of one dialogue in that file: mean and standard deviation of its 12,174, and the fewest.
TURNS_MEAN, TURNS_DEVIATION, TURNS_LEAST = 18.4, 6.6, 4

#: Of what a turn without real data is made.
WORDS = (
    "table",
    "tonight",
    "flight",
    "for",
    "two",
    "please",
    "a",
    "cheaper",
    "one",
    "in",
    "Lisbon",
    "at",
    "seven",
    "yes",
)

#: A conversation lasts between these shares of the run, so that most are open at any time and some end early.
LASTS = (0.1, 0.5)

#: A message that is produced twice comes again within this share of the run.
AGAIN_WITHIN = 0.02

#: The producer hands over what is due so often: a hundredth of a second's work at a time.
SLICE_S = 0.01

#: While faults go on for longer than the input was to last, its last part comes ever slower, a share of what is left at
#: a time: so that there is work in flight to their end, and the input is still what its seed says.
SLOW_FROM, TAIL_S = 0.8, 60.0

#: A send waits longer for its acknowledgement than any fault lasts.
DELIVERY_TIMEOUT_S = 300.0

_NAMESPACE = uuid.UUID("b2a7c1de-54a3-5d0e-8f5c-6368616f7321")


@dataclass(frozen=True, slots=True)
class Line:
    """One send.

    Attributes:
        id: of the message; the same for both sends of one that is produced twice.
        turn: its place in the conversation, from 0.
        poison: where it can't be handled: the agent, or "undecodable"; empty: it can.
        again: whether this is the second send.
        waits: for what its handling waits, where the agents are those that wait.
    """

    id: str
    conversation: str
    turn: int
    text: str
    poison: Poison = ""
    again: bool = False
    waits: Waits = ""


def make_input(scenario: Scenario, seed: int, data: Path | None) -> list[Line]:
    """All sends of a run, in order; the same for the same seed.

    Args:
        data: the folder with real dialogues; None: they are made up, of the same lengths.
    """
    rng = random.Random(f"{seed}/{scenario.name}/input")
    dialogues = _real(data, scenario.conversations) if data is not None else _made_up(rng, scenario.conversations)
    rng.shuffle(dialogues)
    lengths = _lengths([len(turns) for turns in dialogues], scenario.messages)
    sends: list[tuple[float, Line]] = []
    for number, (turns, length) in enumerate(zip(dialogues, lengths, strict=True)):
        lasts = rng.uniform(*LASTS)
        start = rng.uniform(0, 1 - lasts)
        at = sorted(start + rng.random() * lasts for _ in range(length))
        conversation = f"c{number:05d}"
        parked = False  # then no more poison: what is held behind it dies, if at all, when it was mended
        for turn in range(length):
            poison = _poison(rng) if rng.random() < scenario.poison and not parked else ""
            parked = parked or poison not in ("", "undecodable")
            line = Line(
                str(uuid.uuid5(_NAMESPACE, f"{seed}/{scenario.name}/{conversation}/{turn}")),
                conversation,
                turn,
                turns[turn % len(turns)],
                poison,
                waits=_waits(scenario, rng),
            )
            sends.append((at[turn], line))
            if poison != "undecodable" and rng.random() < scenario.duplicates:
                twin = Line(line.id, conversation, turn, line.text, poison, again=True, waits=line.waits)
                sends.append((at[turn] + rng.uniform(1e-9, AGAIN_WITHIN), twin))
    sends.sort(key=lambda send: send[0])
    return [line for _, line in sends]


def _poison(rng: random.Random) -> Poison:
    return "undecodable" if rng.random() < 0.5 else rng.choice(("first", "second", "third"))


def _waits(scenario: Scenario, rng: random.Random) -> Waits:
    if not scenario.timers and not scenario.people:
        return ""  # nothing is drawn, so that older inputs stay as their seeds say
    drawn = rng.random()
    return "timer" if drawn < scenario.timers else "person" if drawn < scenario.timers + scenario.people else ""


def _lengths(found: Sequence[int], total: int) -> list[int]:
    """*found*, scaled so that they sum up to *total*, each at least 1."""
    scale = total / sum(found)
    lengths: list[int] = []
    owed = 0.0
    for length in found:
        owed += length * scale
        lengths.append(max(1, round(owed)))
        owed -= lengths[-1]
    return lengths


def _real(data: Path, count: int) -> list[list[str]]:
    path = data / DIALOGUES
    if not path.is_file():
        raise InputError(f"LLMAGENTOS_DATA is {data}, which holds no {DIALOGUES}", fix="correct it, or unset it")
    dialogues: dict[str, list[str]] = {}
    with gzip.open(path, "rb") as file:
        for raw in file:
            turn = orjson.loads(raw)
            if turn["conversation"] not in dialogues and len(dialogues) == count:
                break
            dialogues.setdefault(turn["conversation"], []).append(turn["text"])
    found = list(dialogues.values())
    return [found[number % len(found)] for number in range(count)]


def _made_up(rng: random.Random, count: int) -> list[list[str]]:
    return [
        [" ".join(rng.choices(WORDS, k=rng.randint(2, 20))) for _ in range(length)]
        for length in (max(TURNS_LEAST, round(rng.gauss(TURNS_MEAN, TURNS_DEVIATION))) for _ in range(count))
    ]


def write_input(path: Path, lines: Sequence[Line]) -> None:
    """Write the input file."""
    with path.open("wb") as file:
        file.writelines(orjson.dumps({name: getattr(line, name) for name in Line.__slots__}) + b"\n" for line in lines)


def read_input(path: Path) -> Iterator[Line]:
    """What :func:`write_input` wrote."""
    with path.open("rb") as file:
        for raw in file:
            yield Line(**orjson.loads(raw))


class Production(threading.Thread):
    """Sends the input over a given time, in a thread with an event loop of its own, while faults go on.

    Attributes:
        sent: how many lines were handed to the producer.
        failure: what ended it; None while it goes on, and where all was acknowledged.
    """

    def __init__(
        self, settings: Settings, lines: Sequence[Line], seconds: float, seed: int, sleep_s: float = 0.0
    ) -> None:
        super().__init__(name="production", daemon=True)
        self._settings = settings.model_copy(update={"delivery_timeout_s": DELIVERY_TIMEOUT_S})
        self._lines = lines
        self._seconds = seconds
        self._rng = random.Random(f"{seed}/bytes")
        self._sleep_s = sleep_s
        self._ended = threading.Event()
        #: Set when there is no reason to go slower than planned.
        self.faults_over = threading.Event()
        self.sent = 0
        self.acknowledged: list[Line] = []
        self.failure: LLMAgentOSError | None = None

    def stop(self) -> None:
        """End early: what is not sent by now never is."""
        self._ended.set()

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except LLMAgentOSError as error:
            self.failure = error

    async def _run(self) -> None:
        codec = await asyncio.to_thread(lambda: Codec(open_registry(self._settings)))
        topic = self._settings.topic(f"agent.{AGENTS[0]}")
        deliveries: list[Delivery] = []
        try:
            async with Producer(self._settings) as producer:
                await asyncio.to_thread(codec.writer, "llmagentos.Message", "message")
                total = len(self._lines)
                progress, looked_at = 1.0, time.monotonic()
                while self.sent < total and not self._ended.is_set():
                    slow = progress > SLOW_FROM * total and not self.faults_over.is_set()
                    now = time.monotonic()
                    progress += (now - looked_at) * ((total - progress) / TAIL_S if slow else total / self._seconds)
                    looked_at = now
                    due = min(total, int(progress))  # (what is slow never comes to the last one)
                    for line in self._lines[self.sent : due]:
                        value = self._value(codec, line)
                        key = line.conversation.encode()
                        headers = [(MESSAGE_ID, line.id)]
                        deliveries.append(producer.post(topic, value, key, headers=headers, kind=Delivery))
                    self.sent = max(self.sent, due)
                    await producer.ebb()
                    await asyncio.sleep(SLICE_S)
                await producer.delivered()
        finally:
            sent = zip(self._lines, deliveries, strict=False)
            self.acknowledged = [line for line, delivery in sent if delivery.acknowledged]

    def _value(self, codec: Codec, line: Line) -> bytes:
        content = {"turn": line.turn, "text": line.text, "poison": line.poison}
        if line.waits:
            content |= {"waits": line.waits, "sleep_s": self._sleep_s}
        message = Message.create(
            content,
            to=AGENTS[0],
            conversation=line.conversation,
            message_id=line.id,
            sender="chaos",
            sequence=line.turn,
        )
        value = codec.encode(message)
        if line.poison != "undecodable":
            return value
        # Either cut off within the body, or never Avro at all.
        return value[: len(value) // 2] if self._rng.random() < 0.5 else b"\x7b" + self._rng.randbytes(40)


def data_folder() -> Path | None:
    """The folder with real dialogues that LLMAGENTOS_DATA names, if it does."""
    named = os.environ.get("LLMAGENTOS_DATA")
    return Path(named) if named else None
