"""Apicurio's registry, a real HTTP one, on loopback and in memory: what stands in for Confluent's in tests."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from jgo.maven import MavenContext

GROUP, ARTIFACT, VERSION = "io.apicurio", "apicurio-registry-app", "2.6.13.Final"
SHA256 = "3cda1b34aa020fb4ac4dd6a66018d757e81e437f97e20a1f92d366b70091c6ba"

#: It answers in some 4 s on two idle cores; a loaded machine takes longer.
STARTS_WITHIN_S = 90.0


def installed(cache: Path) -> Path:
    """The unpacked application under *cache*, fetched from Maven Central once and compared with its checksum."""
    home = cache / f"{ARTIFACT}-{VERSION}"
    if home.is_dir():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        project = MavenContext(repo_cache=Path(scratch) / "m2", timeout=120).project(GROUP, ARTIFACT)
        archive = project.at_version(VERSION).artifact("all", "tar.gz").resolve()
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert digest == SHA256, f"{archive.name} has SHA-256 {digest}"
        unpacked = Path(scratch) / "app"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        with contextlib.suppress(OSError):  # another run was first
            unpacked.rename(home)
    return home


@contextlib.contextmanager
def running(cache: Path) -> Iterator[str]:
    """Run it; gives the URL of its Confluent API."""
    home = installed(cache)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="apicurio-"))
    log = folder / "log"
    command = ["java", "-Xmx256m", f"-Djava.io.tmpdir={folder}", "-Dquarkus.http.host=127.0.0.1"]
    command += [f"-Dquarkus.http.port={port}", "-jar", f"{ARTIFACT}-{VERSION}-runner.jar"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=home, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        until = time.monotonic() + STARTS_WITHIN_S
        while not _answers(url):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < until, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/subjects", timeout=2).is_success
    except httpx.TransportError:
        return False
