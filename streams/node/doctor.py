"""What is needed to run, one by one: is it there, and if not, what to do."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx
import redis

from llmagentos.streams.admin import Admin
from llmagentos.streams.endpoints import brokers, redis_url
from llmagentos.streams.errors import BrokerError, LLMAgentOSError
from llmagentos.streams.node import java, ports
from llmagentos.streams.node.broker import LEAST_FREE_MB
from llmagentos.streams.node.jars import missing, read_list
from llmagentos.streams.node.node import KAFKA_VERSION, Node
from llmagentos.streams.node.state import State
from llmagentos.streams.node.valkey import binary
from llmagentos.streams.settings import Settings

__all__ = ["Check", "examine"]

#: What a service may take to answer.
_ANSWER_S = 3.0
#: Enough for a first hour of work; a topic keeps its records for days.
_LITTLE_FREE_MB = 1024
#: A view in Redis or a deadline is off by as much; NTP keeps machines far closer.
_CLOCK_S = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        state: "ok", "problem" (something will not work), "note" (absent, and only needed for some things).
        found: what there is.
        fix: what to do, where it isn't ok.
    """

    name: str
    state: Literal["ok", "problem", "note"]
    found: str
    fix: str = ""


def examine(settings: Settings) -> Iterator[Check]:
    """Look at everything, in the order in which one thing needs the other; never raises for what is broken."""
    node = Node(settings)
    local = not settings.brokers
    checks: list[tuple[str, Callable[[], Check]]] = [("python", _python)]
    if local:
        checks += [
            ("java", lambda: _java(settings)),
            ("jars", lambda: _jars(node)),
        ]
    if not settings.redis:
        checks.append(("valkey", _valkey))
    checks += [("data folder", lambda: _folder(node)), ("disk", lambda: _disk(node))]
    if local:
        checks += [("cluster id", lambda: _cluster_id(node)), ("ports", lambda: _ports(node))]
    checks.append(("node", lambda: _node(node)))
    if not (_known(settings, brokers) and _known(settings, redis_url)):
        checks.append(("kafka, redis", lambda: Check("kafka, redis", "note", "not looked at", "`llmagentos up` first")))
    else:
        checks += [
            ("kafka", lambda: _kafka(settings)),
            ("redis", lambda: _redis(settings)),
            ("registry", lambda: _registry(settings)),
            ("clock", lambda: _clock(settings)),
        ]
    checks.append(("spark", _spark))
    broken: set[str] = set()
    for name, check in checks:
        if name == "registry" and "kafka" in broken and not settings.registry:
            continue  # it is in Kafka
        try:
            done = check()
            broken |= {name} if done.state == "problem" else set()
            yield done
        except LLMAgentOSError as error:
            broken.add(name)
            yield Check(name, "problem", error.what, error.fix)
        except OSError as error:
            yield Check(name, "problem", f"{error.strerror or error}", "")


def _python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")


def _java(settings: Settings) -> Check:
    there = java.installed(settings.cache)
    for found in there:
        if found.version >= java.OLDEST:
            return Check("java", "ok", f"{found.version}, {found.command}")
    seen = ", ".join(f"{found.command} is Java {found.version}" for found in there) or "none"
    return Check("java", "problem", f"{seen}; {java.OLDEST} or newer is needed", java.HOW)


def _jars(node: Node) -> Check:
    wanted = read_list(Path(__file__).with_name("jars.txt"))
    folder = node.jars_folder
    lacking = missing(wanted, folder)
    if lacking and node.settings.kafka_jars is not None:
        return Check(
            "jars",
            "problem",
            f"LLMAGENTOS_KAFKA_JARS is {folder}, without {len(lacking)} of {len(wanted)}, as {lacking[0].file_name}",
            "put the jars that streams/node/jars.txt lists there, or unset it",
        )
    if lacking:
        size_mb = sum(jar.size for jar in lacking) // 1_000_000
        return Check(
            "jars", "note", f"{len(lacking)} of {len(wanted)} are not in {folder}", f"`up` fetches {size_mb} MB"
        )
    for jar in wanted:
        if hashlib.sha256((folder / jar.file_name).read_bytes()).hexdigest() != jar.sha256:
            return Check(
                "jars",
                "problem",
                f"{folder / jar.file_name} is not what it was when it came",
                "delete it: the next `llmagentos up` fetches it again",
            )
    return Check("jars", "ok", f"Kafka {KAFKA_VERSION}, {len(wanted)} jars with the right checksums in {folder}")


def _valkey() -> Check:
    return Check("valkey", "ok", str(binary()))


def _folder(node: Node) -> Check:
    place = _existing(node.home)
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("data folder", "problem", f"{place} can't be written", "choose another: LLMAGENTOS_HOME or --data")
    return Check("data folder", "ok", str(node.home) if node.home.exists() else f"{node.home}, made at the first `up`")


def _disk(node: Node) -> Check:
    usage = shutil.disk_usage(_existing(node.home))
    free_mb = usage.free // 2**20
    found = f"{free_mb:,} of {usage.total // 2**20:,} MiB are free at {node.home}"
    if free_mb < LEAST_FREE_MB:
        return Check("disk", "problem", f"the disk is full: {found}", "free some space, then `llmagentos up`")
    if free_mb < _LITTLE_FREE_MB:
        return Check("disk", "note", found, "Kafka ends when its disk is full; free some space soon")
    return Check("disk", "ok", found)


def _cluster_id(node: Node) -> Check:
    state = State.load(node.home)
    if state is None:
        return Check("cluster id", "note", "none yet", "`llmagentos up` makes it")
    other = node.foreign_data(state)
    if other is not None:
        return Check("cluster id", "problem", other.what, other.fix)
    return Check("cluster id", "ok", state.cluster_id)


def _ports(node: Node) -> Check:
    state = State.load(node.home)
    if state is None:
        return Check("ports", "note", "none yet", "`llmagentos up` chooses free ones")
    running = {part.port for part in node.status().parts if part.running}
    mine = (*state.ports, state.redis_port)
    taken = [port for port in mine if port not in running and not ports.is_free(port)]
    if taken:
        others = ", ".join(f"{port} by {ports.holder(port)}" for port in taken)
        fix = "stop that process, or `llmagentos up --port P`" if state.fixed else "`llmagentos up` chooses others"
        return Check("ports", "problem" if state.fixed else "note", f"taken: {others}", fix)
    return Check("ports", "ok", f"Kafka {', '.join(map(str, state.ports))}, Redis {state.redis_port}")


def _node(node: Node) -> Check:
    status = node.status()
    if not status.parts:
        return Check("node", "note", "never started", "`llmagentos up`")
    said = ", ".join(
        f"{part.name}: {part.trouble}" if part.trouble else f"{part.name} runs (pid {part.pid}, {part.rss_mb:.0f} MiB)"
        for part in status.parts
    )
    if status.state == "running":
        return Check("node", "ok", said)
    if status.state == "stopped":
        return Check("node", "note", "stopped", "`llmagentos up`")
    return Check(
        "node", "problem", said, "`llmagentos up` starts what is dead and keeps the data; logs: " + str(node.logs)
    )


def _kafka(settings: Settings) -> Check:
    cluster = Admin(settings, timeout_s=_ANSWER_S).cluster()
    places = ", ".join(cluster.brokers.values())
    return Check("kafka", "ok", f"cluster {cluster.cluster_id}: {len(cluster.brokers)} broker(s) answer, {places}")


def _redis(settings: Settings) -> Check:
    url = redis_url(settings)
    client = redis.Redis.from_url(url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S)
    try:
        info: dict[str, object] = client.info("server")  # pyright: ignore[reportAssignmentType] - async stub
    except redis.RedisError as error:
        return Check("redis", "problem", f"{_place(url)}: {error}", "`llmagentos up`, or check LLMAGENTOS_REDIS")
    finally:
        client.close()
    name = info.get("server_name", "redis")
    number = info.get(f"{name}_version", info["redis_version"])  # Valkey's redis_version is the one that it is like
    return Check("redis", "ok", f"{name} {number} at {_place(url)}")


def _registry(settings: Settings) -> Check:
    if not settings.registry:
        name = settings.topic("schemas")
        if name in Admin(settings, timeout_s=_ANSWER_S).topics(name):
            return Check("registry", "ok", f"log-backed, in topic {name}")
        return Check("registry", "note", f"log-backed; topic {name} is not there yet", "the first deployment makes it")
    try:
        answer = httpx.get(settings.registry.rstrip("/") + "/subjects", timeout=_ANSWER_S)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        return Check("registry", "problem", f"{settings.registry}: {error}", "check LLMAGENTOS_REGISTRY")
    return Check("registry", "ok", f"{settings.registry}: {len(answer.json())} subjects")


def _clock(settings: Settings) -> Check:
    client = redis.Redis.from_url(redis_url(settings), socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S)
    try:
        before = time.time()
        moment: tuple[int, int] = client.time()  # pyright: ignore[reportAssignmentType] - async stub
        after = time.time()
    except redis.RedisError as error:
        return Check("clock", "note", f"nothing to compare with: {error}", "start Redis")
    finally:
        client.close()
    off_s = moment[0] + moment[1] / 1e6 - (before + after) / 2
    found = f"{abs(off_s):.3f} s {'behind' if off_s > 0 else 'ahead of'} Redis' clock"
    if abs(off_s) > _CLOCK_S:
        return Check("clock", "problem", found, "let NTP set both machines' clocks")
    return Check("clock", "ok", found)


def _spark() -> Check:
    fix = "`pip install 'llmagentos[spark]'`; only jobs need it"
    if importlib.util.find_spec("pyspark") is None:
        return Check("spark", "note", "not installed", fix)
    try:
        return Check("spark", "ok", f"pyspark {version('pyspark')}")
    except PackageNotFoundError:
        return Check("spark", "note", "installed, of unknown version", fix)


def _known(settings: Settings, endpoint: Callable[[Settings], str]) -> bool:
    try:
        return bool(endpoint(settings))
    except BrokerError:
        return False


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _place(url: str) -> str:
    """Without the password."""
    return url.rpartition("@")[2].removeprefix("redis://")
