"""Rehearsing: what is under way in a deployment, run against the code that is to replace it, in a process of its own.

    python -m llmagentos.agents.rehearsing DEPLOYMENT TARGET < {"skip": [], "passed": [], "at_once": 100}

The child reads what is open from the journals, imports the module, and prints a line of JSON for each message that it
begins and ends, and one every now and then. Where those stop, a handler computes without end: the child is killed, and
another one goes on behind that message. What the module prints goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, cast

import orjson

from llmagentos.agents.checking import CHECK_S
from llmagentos.streams import errors
from llmagentos.streams.errors import DeploymentError, LLMAgentOSError
from llmagentos.streams.masking import masked_text, shortened
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from llmagentos.agents.agent import Agent
    from llmagentos.agents.loading import LoadedModule
    from llmagentos.agents.open_work import Loaded, OpenWork, Underway
    from llmagentos.agents.rehearsal import Verdict
    from llmagentos.streams.wire import Codec

__all__ = ["MOST", "AgentWork", "Example", "Rehearsal", "anything", "opened", "rehearse_all"]

#: Messages of one agent that are rehearsed, of each way that they have come as many as of another: what has come the
#: same way goes on the same way, mostly. A second or so.
MOST: Final = 1_000
#: Messages that are rehearsed at once, and read at once: of 1 MB each, 100 MB.
AT_ONCE: Final = 100
#: The child says that it lives so often; after so long without a word a handler holds it up.
ALIVE_S: Final = 0.5
BLOCKED_S: Final = 6.0
#: Messages of one agent that may hold a child up, before the others of the agent are passed over.
STRIKES: Final = 2
#: All of it: a person waits for it. What was not come to is counted.
TOTAL_S: Final = 120.0

_Id = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One message that would not go on: the fields of a :class:`Verdict`, and whose it is."""

    conversation: str
    message_id: str
    kind: str
    recorded: str
    instead: str
    where: str
    why: str


@dataclass(slots=True)
class AgentWork:
    """What is under way of one agent, and what would become of it.

    Attributes:
        open: messages whose handler has recorded something, or is suspended.
        goes_on, breaks, fails: of those, by verdict.
        unknown: those of which it could not be seen: why, and how many.
        left: those that were not looked at.
        parked: dead letters whose handler has recorded something; of those, `parked_breaks` would not go on if they
            were redriven.
        gone: the new code does not have the agent: then `open` is what its journal keeps and its inbox does not.
        inbox: of one that is gone, messages in its inbox that are not finished.
        example: of those that would not go on, or else of those that could not be seen.
    """

    agent: str
    open: int = 0
    goes_on: int = 0
    breaks: int = 0
    fails: int = 0
    unknown: dict[str, int] = field(default_factory=dict[str, int])
    left: int = 0
    parked: int = 0
    parked_breaks: int = 0
    gone: bool = False
    inbox: int = 0
    example: Example | None = None

    @property
    def stopped(self) -> int:
        """How many messages would not go on."""
        return self.open + self.inbox if self.gone else self.breaks + self.fails


@dataclass(slots=True)
class Rehearsal:
    """What would become of what is under way.

    Attributes:
        agents: those that have something under way.
    """

    agents: list[AgentWork]

    @property
    def stopped(self) -> int:
        """How many messages would not go on."""
        return sum(work.stopped for work in self.agents)


# -- the parent -----------------------------------------------------------------------------------------------------


def rehearse_all(
    name: str,
    target: str,
    *,
    cwd: str,
    environment: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rehearsal:
    """Rehearse what is under way in deployment *name* with the code of *target*.

    Args:
        progress: told how many messages are through, of how many.

    Raises:
        DeploymentError: the module can't be imported, or ends the process.
        LLMAgentOSError: what the child raised, as the same class: the broker is out of reach, say.
    """
    told = _Told(progress)
    until = time.monotonic() + TOTAL_S
    at_once = AT_ONCE
    while not told.ended and time.monotonic() < until:
        asked = {"skip": list(told.verdicts), "passed": sorted(told.passed), "at_once": at_once}
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "llmagentos.agents.rehearsing", name, target],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )
            try:
                _listen(child, asked, told, until)
            finally:
                _end(child)
            if told.planned or told.ended:
                at_once = told.blame(at_once)
                continue
            said.seek(0)
            last = said.read().decode(errors="replace").strip()[-4_000:]
        raise DeploymentError(
            f"{target} ended the process that rehearsed what is under way (exit status {child.returncode})"
            + (f"; it printed:\n{last}" if last else ""),
            fix="a module must not end its process at import; --force deploys without a rehearsal",
        )
    return told.rehearsal()


def _listen(child: subprocess.Popen[bytes], asked: Mapping[str, Any], told: _Told, until: float) -> None:
    """Take in what *child* says until it ends, or falls silent."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read(output: IO[bytes]) -> None:
        with output:
            for line in output:
                lines.put(line)
        lines.put(None)

    assert child.stdin is not None
    assert child.stdout is not None
    threading.Thread(target=read, args=(child.stdout,), daemon=True).start()
    told.planned = False
    told.begun.clear()
    try:
        with child.stdin:
            child.stdin.write(orjson.dumps(asked))
        while not told.ended and (left := until - time.monotonic()) > 0:
            line = lines.get(timeout=min(left, BLOCKED_S if told.planned else CHECK_S))
            if line is None:
                return
            told.take(line)
    except (BrokenPipeError, queue.Empty):
        return


def _end(child: subprocess.Popen[bytes]) -> None:
    """End *child*, and what the module has started in it."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class _Told:
    """What children have said so far."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress
        self._plan: list[dict[str, Any]] = []
        self._total = 0
        self._strikes: dict[str, int] = defaultdict(int)
        self.planned = False
        self.ended = False
        self.begun: dict[_Id, dict[str, Any]] = {}
        self.verdicts: dict[_Id, dict[str, Any]] = {}
        self.passed: set[str] = set()

    def take(self, line: bytes) -> None:
        """One line of a child."""
        said: dict[str, Any] = orjson.loads(line)
        if "error" in said:
            kind = getattr(errors, said["error"], DeploymentError)
            raise kind(said["what"], fix=said["fix"], kept=said["kept"])
        if "plan" in said:
            self._plan, self._total, self.planned = said["plan"], said["total"], True
        elif "begun" in said:
            self.begun[_id(said["begun"])] = said
        elif "verdict" in said:
            self.begun.pop(_id(said["id"]), None)
            self.verdicts[_id(said["id"])] = said
        self.ended = self.ended or "end" in said
        self._progress(len(self.verdicts), max(self._total, len(self.verdicts)))

    def blame(self, at_once: int) -> int:
        """A child was held up, or died: by the one message that it was at, if that is known. How many to try next."""
        if self.ended or not self.begun:
            self.ended = True  # it was ended by the time, or died of nothing that was rehearsed
            return at_once
        if len(self.begun) > 1:
            return 1
        ((place, said),) = self.begun.items()
        why = "its handler computes without end, or ended the process"
        self.verdicts[place] = said | {"verdict": "unknown", "why": why, "recorded": "", "instead": "", "where": ""}
        self._strikes[place[0]] += 1
        if self._strikes[place[0]] >= STRIKES:
            self.passed.add(place[0])
        return 1

    def rehearsal(self) -> Rehearsal:
        """All of it."""
        works = {each["agent"]: AgentWork(**each) for each in self._plan}
        seen: dict[str, int] = defaultdict(int)
        for (agent, _, _), said in self.verdicts.items():
            work = works.setdefault(agent, AgentWork(agent))
            kind = said["verdict"]
            if said["parked"]:
                work.parked_breaks += kind in ("breaks", "fails")
                continue
            seen[agent] += 1
            if kind == "goes-on":
                work.goes_on += 1
            elif kind == "breaks":
                work.breaks += 1
            elif kind == "fails":
                work.fails += 1
            else:
                work.unknown[said["why"]] = work.unknown.get(said["why"], 0) + 1
            if _RANK[kind] > (_RANK[work.example.kind] if work.example is not None else 0):
                work.example = Example(
                    said["conversation"],
                    said["message"],
                    kind,
                    said["recorded"],
                    said["instead"],
                    said["where"],
                    said["why"],
                )
        for work in works.values():
            if not work.gone:
                known = work.goes_on + work.breaks + work.fails + sum(work.unknown.values())
                work.left = max(0, work.open - known)
        return Rehearsal([work for work in works.values() if work.open or work.parked or work.inbox])


#: Which verdict is worth an example more.
_RANK: Final = {"goes-on": 0, "unknown": 1, "fails": 2, "breaks": 3}


def _id(said: Sequence[Any]) -> _Id:
    agent, partition, offset = said
    return agent, partition, offset


# -- the child ------------------------------------------------------------------------------------------------------


def opened(settings: Settings, codec: Codec, deployment: str, loaded: LoadedModule) -> tuple[OpenWork, list[str]]:
    """What is open in a deployment that is to get the code *loaded*, read; and the agents that it has no more.

    Raises:
        BrokerError, SchemaError: the cluster, or the registry, does not answer.
    """
    from llmagentos.agents.cards import read_cards
    from llmagentos.agents.open_work import OpenWork

    cards = read_cards(settings, codec)
    gone = {card.name: card.topic for card in cards.values() if card.deployment == deployment}
    topics: dict[str, str] = {}
    for name, agent in loaded.agents.items():
        gone.pop(name, None)
        if name not in cards or cards[name].deployment == deployment:  # else it is another's to finish
            topics[name] = agent.topic or settings.topic(f"agent.{name}")
    work = OpenWork(settings, codec, deployment, topics | gone)
    try:
        work.read()
    except BaseException:
        work.close()
        raise
    return work, sorted(gone)


def anything(work: OpenWork, gone: Iterable[str]) -> bool:
    """Whether there is anything to be looked at before other code is deployed."""
    gone = list(gone)
    if any(any(work.kept(agent)) for agent in gone) or (gone and any(work.backlog(gone).values())):
        return True
    return any(work.under_way(agent) for agent in work.agents if agent not in gone)


def chosen(under: Sequence[Underway], most: int) -> list[Underway]:
    """Of *under* at most *most*: of each way that they have come in turn, so that a rare one is among them."""
    ways: dict[tuple[str, ...], deque[Underway]] = defaultdict(deque)
    for each in under:
        ways[each.way].append(each)
    turns = deque(ways.values())
    found: list[Underway] = []
    while turns and len(found) < most:
        way = turns.popleft()
        found.append(way.popleft())
        if way:
            turns.append(way)
    return sorted(found, key=lambda each: (each.place, each.entry.payload_at))


class _Child:
    def __init__(self, deployment: str, loaded: LoadedModule, asked: Mapping[str, Any], answer: IO[bytes]) -> None:
        from llmagentos.agents.history import History
        from llmagentos.streams.registry import open_registry
        from llmagentos.streams.spans import Spans
        from llmagentos.streams.wire import Codec

        self._settings = Settings.load()
        self._loaded = loaded
        self._at_once: int = asked["at_once"]
        self._skip = {_id(each) for each in asked["skip"]}
        self._passed = set(asked["passed"])
        self._answer = answer
        self._codec = Codec(open_registry(self._settings))
        self._history = History(self._settings, self._codec)
        self._memories = Spans(self._settings, name="memory")
        self._work, self._gone = opened(self._settings, self._codec, deployment, loaded)

    def say(self, **said: Any) -> None:
        self._answer.write(orjson.dumps(said) + b"\n")
        self._answer.flush()

    async def run(self) -> None:
        alive = asyncio.create_task(self._alive())
        todo = await asyncio.to_thread(self._plan)
        for first in range(0, len(todo), self._at_once):
            some = todo[first : first + self._at_once]
            loaded = await asyncio.to_thread(self._work.load, some)
            await asyncio.gather(*map(self._one, some, loaded))
        alive.cancel()
        self.say(end=True)

    async def _alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_S)
            self.say(alive=True)

    def _plan(self) -> list[Underway]:
        """Say what there is, and choose what is rehearsed."""
        plan: list[dict[str, Any]] = []
        todo: list[Underway] = []
        inboxes = self._work.backlog(self._gone) if self._gone else {}
        for agent in self._work.agents:
            if agent in self._gone:
                kept, parked = self._work.kept(agent)
                about = {"agent": agent, "open": kept, "parked": parked, "inbox": inboxes[agent]}
                plan.append(about | {"gone": True, "parked_breaks": parked})
                continue
            under = self._work.under_way(agent)
            live = [each for each in under if not each.parked]
            bound = [each for each in live if any(not name.startswith("ctx.version ") for name in each.way)]
            parked = [each for each in under if each.parked]
            # What has recorded nothing has nothing to leave out.
            free = len(live) - len(bound) - sum(each.entry.state == "unknown" for each in live if not each.way)
            plan.append({"agent": agent, "open": len(live), "goes_on": free, "parked": len(parked)})
            strange = [each for each in live if not each.way and each.entry.state == "unknown"]
            if agent not in self._passed:
                todo += chosen(bound + strange, MOST) + chosen(parked, MOST)
        todo = [each for each in todo if each.id not in self._skip]
        self.say(plan=plan, total=len(todo) + len(self._skip))
        return todo

    async def _one(self, each: Underway, loaded: Loaded) -> None:
        from llmagentos.agents.rehearsal import WHY_WIDTH, Verdict

        about = {
            "id": each.id,
            "conversation": each.entry.conversation_id,
            "message": each.entry.message_id,
            "parked": each.parked,
        }
        self.say(**about, begun=each.id)
        try:
            verdict = await self._verdict(self._loaded.agents[each.place.agent], each, loaded)
        except LLMAgentOSError as error:
            verdict = Verdict("unknown", why=error.what)
        except Exception as error:  # noqa: BLE001 - the others are to be looked at all the same
            verdict = Verdict("unknown", why=f"{type(error).__name__}: {error}")
        self.say(
            **about,
            verdict=verdict.kind,
            recorded=masked_text(verdict.recorded),
            instead=masked_text(verdict.instead),
            where=verdict.where,
            why=shortened(masked_text(verdict.why), WHY_WIDTH),
        )

    async def _verdict(self, agent: Agent, each: Underway, loaded: Loaded) -> Verdict:
        from llmagentos.agents.foreign import reader
        from llmagentos.agents.rehearsal import Past, Verdict, rehearse

        entry, codec = each.entry, self._codec
        if entry.state == "unknown":
            return Verdict("unknown", why="a newer release wrote something of it into the journal")
        if loaded.missing:
            return Verdict("unknown", why="recorded steps of it are missing from the journal")
        if loaded.record is None:
            return Verdict("unknown", why="its message is gone from the inbox")
        message = (codec.read if agent.topic is None else reader(agent, codec))(loaded.record)
        if entry.state not in ("waiting", "open"):
            message.record["deadline"] = None
        memory: Any = None
        if agent.memory is not None:
            try:
                memory = await asyncio.to_thread(self._memory, agent, each)
            except errors.StateError as error:
                return Verdict(
                    "breaks", where=agent.source, why=f"what its agent remembers can't be read: {error.what}"
                )
        past = Past(
            steps=loaded.steps,
            answers=loaded.answers,
            dues={wait.about: wait.due for wait in entry.waits if wait.kind == "answer"},
            again=f"/{entry.park}" if entry.park >= 0 else "",
            memory=memory,
        )
        return await rehearse(
            agent,
            message,
            past,
            settings=self._settings,
            decode=lambda value: codec.message(value, "", -1, -1, -1),
            history=self._history,
        )

    def _memory(self, agent: Agent, each: Underway) -> Any:
        """What *agent* remembers of the conversation now."""
        from llmagentos.agents.shape import Shape
        from llmagentos.streams.mirror import look

        shape = Shape(agent.name, cast(type, agent.memory))
        topic, key = self._settings.topic(f"memory.{agent.name}"), each.entry.conversation_id
        try:
            seen = look(self._settings, self._memories, topic, each.place.partition, key.encode(errors="surrogatepass"))
        except errors.BrokerError:  # it has none yet
            return shape.fresh()
        if seen.value is None:
            return shape.fresh()
        record = self._codec.decode(seen.value)
        return shape.decode(record["body"], record["content_type"])


def main() -> None:
    """The child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("deployment")
    parser.add_argument("target")
    arguments = parser.parse_args()
    asked = orjson.loads(sys.stdin.buffer.read())
    answer = os.fdopen(os.dup(1), "wb")  # before the module prints
    os.dup2(2, 1)
    from llmagentos.agents.loading import load

    try:
        asyncio.run(_Child(arguments.deployment, load(arguments.target), asked, answer).run())
    except LLMAgentOSError as error:
        told = {"error": type(error).__name__, "what": error.what, "fix": error.fix, "kept": error.kept}
        answer.write(orjson.dumps(told) + b"\n")
        answer.flush()
    os._exit(0)  # a thread that the module left running must not hold us


if __name__ == "__main__":
    main()
