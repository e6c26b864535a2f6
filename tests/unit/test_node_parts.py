"""The parts of the node that need no broker: jars, Java, ports, pid files, what is remembered."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmagentos.streams.errors import NodeError
from llmagentos.streams.node import Node, java, ports
from llmagentos.streams.node.broker import Broker, properties
from llmagentos.streams.node.jars import Jar, fetch, read_list
from llmagentos.streams.node.process import Daemon
from llmagentos.streams.node.state import State, new_cluster_id
from llmagentos.streams.settings import Settings

#: The smallest jar of the list: 4 kB.
SMALL = "org.jspecify:jspecify:1.0.0"


@pytest.fixture
def small() -> Jar:
    listed = read_list(Path(java.__file__).with_name("jars.txt"))
    return next(jar for jar in listed if str(jar) == SMALL)


class TestJars:
    def test_the_list_is_whole(self):
        listed = read_list(Path(java.__file__).with_name("jars.txt"))
        assert len(listed) == len({jar.file_name for jar in listed}) == 45
        assert all(len(jar.sha256) == 64 for jar in listed)

    def test_a_jar_is_fetched_once_and_told(self, small: Jar, tmp_path: Path):
        told: list[tuple[str, int, int]] = []
        (path,) = fetch([small], tmp_path / "jars", lambda *what: told.append(what))
        assert path.stat().st_size == small.size
        assert told == [("fetching jars", 0, small.size), ("fetching jars", small.size, small.size)]
        stamp = path.stat().st_mtime_ns
        fetch([small], tmp_path / "jars", lambda *what: told.append(what))
        assert len(told) == 2
        assert path.stat().st_mtime_ns == stamp
        assert list((tmp_path / "jars").iterdir()) == [path]

    def test_a_jar_cut_short_is_fetched_again(self, small: Jar, tmp_path: Path):
        (tmp_path / small.file_name).write_bytes(b"half")
        (path,) = fetch([small], tmp_path)
        assert path.stat().st_size == small.size

    def test_another_checksum_is_refused(self, small: Jar, tmp_path: Path):
        wrong = Jar("0" * 64, small.size, small.group, small.artifact, small.version)
        with pytest.raises(NodeError, match=f"{small}.*is not the one.*{small.sha256}.*must be 0000"):
            fetch([wrong], tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_jar_that_is_not_there_says_which(self, small: Jar, tmp_path: Path):
        wrong = Jar(small.sha256, small.size, small.group, small.artifact, "0.0.0-never")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # jgo leaves the connection of a refused request to gc
            with pytest.raises(NodeError, match="jspecify:0.0.0-never could not be fetched") as caught:
                fetch([wrong], tmp_path)
            gc.collect()
        assert "LLMAGENTOS_KAFKA_JARS" in caught.value.fix

    def test_a_given_folder_that_lacks_some_is_named(self, tmp_path: Path):
        node = Node(Settings(home=tmp_path / "home", kafka_jars=tmp_path))
        with pytest.raises(NodeError, match=r"lacks 45 of 45 jars.*lz4-java") as caught:
            node.jars()
        assert str(tmp_path) in caught.value.what

    def test_a_given_folder_is_taken_as_it_is(self, tmp_path: Path):
        listed = read_list(Path(java.__file__).with_name("jars.txt"))
        for jar in listed:
            with (tmp_path / jar.file_name).open("wb") as file:
                file.truncate(jar.size)
        assert Node(Settings(kafka_jars=tmp_path)).jars() == [tmp_path / jar.file_name for jar in listed]


def fake_java(folder: Path, version: str) -> Path:
    command = folder / "bin" / "java"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2018-10-16' >&2\n")
    command.chmod(0o755)
    return command


class TestJava:
    @pytest.fixture(autouse=True)
    def nothing_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        # A closed port in place of the index of Javas: what a machine without a way there sees.
        monkeypatch.setenv("CJDK_INDEX_URL", f"https://127.0.0.1:{ports.free(1)[0]}/index.json")

    def test_java_home_comes_first(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        command = fake_java(tmp_path / "seventeen", "17.0.2")
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "seventeen"))
        assert java.find(tmp_path) == java.Java(command, 17)

    def test_an_old_one_is_passed_over(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        fake_java(tmp_path / "eight", "1.8.0_292")
        newer = fake_java(tmp_path / "newer", "21.0.1")
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "eight"))
        monkeypatch.setenv("PATH", str(newer.parent))
        assert java.find(tmp_path).command == newer

    def test_one_fetched_before_is_found(self, tmp_path: Path):
        command = fake_java(tmp_path / "java" / "jdk-21", "21.0.1")
        command.parent.parent.joinpath("release").write_text('JAVA_VERSION="21.0.1"\n')
        assert java.find(tmp_path) == java.Java(command, 21)

    def test_none_says_how_to_get_one(self, tmp_path: Path):
        told: list[str] = []
        with pytest.raises(NodeError, match="none is installed; fetching Java 21 failed") as caught:
            java.find(tmp_path, lambda what, *_: told.append(what))
        assert "JAVA_HOME" in caught.value.fix
        assert "openjdk-17" in caught.value.fix
        assert len(told) == 1
        assert "fetching Java 21" in told[0]

    def test_only_old_ones_are_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        command = fake_java(tmp_path / "eleven", "11.0.1")
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "eleven"))
        with pytest.raises(NodeError, match=f"{command} is Java 11"):
            java.find(tmp_path)


class TestPorts:
    def test_free_ones_are_distinct_and_below_the_ephemeral_range(self):
        found = ports.free(20)
        assert len(set(found)) == 20
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert all(20_000 <= port < max(lowest, 21_000) for port in found)
        assert all(ports.is_free(port) for port in found)

    def test_the_holder_of_a_taken_one_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert not ports.is_free(port)
            assert ports.holder(port) == f"{psutil.Process().name()} (pid {os.getpid()})"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's process."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def daemon(folder: Path, program: str | None = None) -> Daemon:
    name = program or Path(sys.executable).name
    return Daemon("a test", name, str(folder / "marker"), folder / "run" / "x.pid", folder / "logs" / "x.log")


def sleeper(folder: Path, code: str = "import time; print('hello', flush=True); time.sleep(60)") -> list[str]:
    return [sys.executable, "-c", code, str(folder / "marker")]


class TestDaemon:
    def test_starts_is_found_again_and_stops(self, tmp_path: Path):
        one = daemon(tmp_path)
        assert one.process() is None
        started = one.start(sleeper(tmp_path))
        try:
            found = daemon(tmp_path).process()
            assert found is not None
            assert found.pid == started.pid
        finally:
            assert one.stop(10)
        assert one.process() is None
        assert not one.pid_file.exists()
        assert not psutil.pid_exists(started.pid)

    def test_is_there_from_its_first_moment(self, tmp_path: Path):
        one = daemon(tmp_path, program="tail")
        (tmp_path / "marker").touch()
        for _ in range(20):
            started = one.start(["tail", "-f", tmp_path / "marker"])
            found = one.process()
            assert one.stop(10)
            assert found is not None, "a process that is being executed has no command line yet"
            assert not psutil.pid_exists(started.pid)

    def test_one_that_is_killed_died_of_it(self, tmp_path: Path):
        one = daemon(tmp_path)
        assert one.kill() is None
        started = one.start(sleeper(tmp_path))
        assert one.kill() == started.pid
        assert one.exited()

    def test_one_that_does_not_heed_is_killed(self, tmp_path: Path):
        one = daemon(tmp_path)
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
        started = one.start(sleeper(tmp_path, code))
        deadline = time.monotonic() + 10
        while "deaf" not in one.tail():
            assert time.monotonic() < deadline
        assert not one.stop(0.2, force=False)
        assert one.stop(0.2)
        assert not psutil.pid_exists(started.pid)

    def test_never_signals_another_process_of_that_number(self, tmp_path: Path, stranger: subprocess.Popen[bytes]):
        one = daemon(tmp_path)
        one.pid_file.parent.mkdir()
        one.pid_file.write_text(json.dumps({"pid": stranger.pid, "started": 0}))
        assert one.process() is None
        assert one.stop(1)
        assert stranger.poll() is None

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"pid": 999999999}'])
    def test_a_damaged_pid_file_is_no_process(self, tmp_path: Path, content: str):
        one = daemon(tmp_path)
        one.pid_file.parent.mkdir()
        one.pid_file.write_text(content)
        assert one.process() is None

    def test_finds_one_whose_pid_file_was_never_written(self, tmp_path: Path):
        one = daemon(tmp_path)
        started = one.start(sleeper(tmp_path))
        one.pid_file.unlink()
        found = one.process()
        try:
            assert found is not None
            assert found.pid == started.pid
        finally:
            one.stop(10)
        assert not psutil.pid_exists(started.pid)

    def test_one_killed_by_another_is_seen_to_be_gone(self, tmp_path: Path):
        one = daemon(tmp_path)
        started = one.start(sleeper(tmp_path))
        os.kill(started.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while one.process() is not None:
            assert time.monotonic() < deadline
        assert one.exited()

    def test_what_cannot_be_executed_says_so(self, tmp_path: Path):
        one = daemon(tmp_path, program="never")
        with pytest.raises(NodeError, match="a test can't be started: No such file"):
            one.start([tmp_path / "never", tmp_path / "marker"])

    def test_a_large_log_is_moved_aside(self, tmp_path: Path):
        one = daemon(tmp_path)
        one.log.parent.mkdir()
        with one.log.open("wb") as file:
            file.truncate(9 * 1024 * 1024)
        one.start(sleeper(tmp_path))
        try:
            assert one.log.stat().st_size < 1024
            assert one.log.with_name("x.log.1").stat().st_size == 9 * 1024 * 1024
        finally:
            one.stop(10)


class TestState:
    def test_comes_back_as_it_was(self, tmp_path: Path):
        state = State(new_cluster_id(), (1, 2, 3), (4, 5, 6), 7, True)
        state.save(tmp_path)
        assert State.load(tmp_path) == state
        assert State.load(tmp_path / "none") is None

    def test_a_damaged_one_says_what_to_do(self, tmp_path: Path):
        (tmp_path / "node.json").write_text('{"cluster_id": ')
        with pytest.raises(NodeError, match=r"node\.json is damaged") as caught:
            State.load(tmp_path)
        assert "delete" in caught.value.fix

    def test_cluster_ids_are_what_kafka_takes(self):
        ids = {new_cluster_id() for _ in range(200)}
        assert len(ids) == 200
        assert all(len(text) == 22 and not text.startswith("-") for text in ids)


def test_three_brokers_keep_three_copies(tmp_path: Path):
    brokers = [Broker(number, tmp_path, 1000 + number, 2000 + number) for number in (1, 2, 3)]
    settings = properties(brokers[1], brokers, {"num.io.threads": "2"})
    assert settings["default.replication.factor"] == "3"
    assert settings["min.insync.replicas"] == "2"
    assert settings["controller.quorum.voters"] == "1@127.0.0.1:2001,2@127.0.0.1:2002,3@127.0.0.1:2003"
    assert settings["num.io.threads"] == "2"
    assert all("0.0.0.0" not in value for value in settings.values())


def test_a_broker_names_each_client_the_address_by_which_it_came(tmp_path: Path):
    brokers = [Broker(number, tmp_path, 1000 + number, 2000 + number) for number in (1, 2, 3)]
    settings = properties(brokers[1], brokers, {}, outside="10.0.0.1")
    clients = "CLIENTS://127.0.0.1:1002"
    assert settings["listeners"] == f"{clients},CONTROLLER://127.0.0.1:2002,OUTSIDE://10.0.0.1:31002"
    assert settings["advertised.listeners"] == f"{clients},OUTSIDE://10.0.0.1:31002"
    assert settings["inter.broker.listener.name"] == "CLIENTS"


def test_wrong_numbers_of_brokers_are_refused(tmp_path: Path):
    with pytest.raises(NodeError, match="1 or 3 brokers, not 2"):
        Node(Settings(home=tmp_path)).up(2)


def test_a_security_that_the_node_does_not_speak_is_refused(tmp_path: Path):
    with pytest.raises(NodeError, match="plain text on loopback, but the settings ask for SSL"):
        Node(Settings(home=tmp_path, security_protocol="SSL")).up()


def test_nothing_to_start_where_the_settings_name_both(tmp_path: Path):
    with pytest.raises(NodeError, match="nothing to start"):
        Node(Settings(home=tmp_path, brokers="a:1", redis="redis://b")).up()
    assert not list(tmp_path.iterdir())
