"""Java: the one that is there, or one fetched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmagentos.streams.errors import NodeError
from llmagentos.streams.node.jars import Progress

__all__ = ["HOW", "OLDEST", "Java", "find", "installed"]

#: Kafka 4 brokers need this one (KIP-1013).
OLDEST = 17
#: What is fetched where none is found: a long-term release, which Kafka 4.4 is tested with.
_FETCHED = "21"

#: To a person who has none.
HOW = (
    f"install Java {OLDEST} or newer (Debian and Ubuntu: `apt install openjdk-17-jre-headless`; macOS: "
    "`brew install openjdk`) and put `java` on the PATH, or set JAVA_HOME"
)


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that was found: its command, and its version, as 17."""

    command: Path
    version: int


def installed(cache: Path) -> list[Java]:
    """Every Java there is, the one to take first; too old ones too."""
    homes = [os.environ.get("JAVA_HOME", "")]
    commands = [Path(home) / "bin" / "java" for home in homes if home]
    on_path = shutil.which("java")
    if on_path:
        commands.append(Path(on_path))
    commands += sorted((cache / "java").glob("**/bin/java"))
    found: list[Java] = []
    for command in commands:
        version = _version(command)
        if version is not None:
            found.append(Java(command, version))
    return found


def find(cache: Path, progress: Progress | None = None) -> Java:
    """A Java that Kafka runs on: JAVA_HOME's, the PATH's, or else one fetched into *cache*.

    Raises:
        NodeError: there is none, or only older ones, and none can be fetched.
    """
    there = installed(cache)
    for java in there:
        if java.version >= OLDEST:
            return java
    seen = ", ".join(f"{java.command} is Java {java.version}" for java in there) or "none is installed"
    if progress:
        progress(f"fetching Java {_FETCHED} into {cache / 'java'} (found: {seen})", 0, 0)
    return _fetch(cache, seen)


def _fetch(cache: Path, seen: str) -> Java:
    import cjdk

    try:
        home = cjdk.java_home(vendor="temurin", version=_FETCHED, cache_dir=cache / "java", progress=False)
    except (cjdk.CjdkError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NodeError(
            f"Kafka needs Java {OLDEST} or newer: {seen}; fetching Java {_FETCHED} failed: {reason}", fix=HOW
        ) from error
    return Java(home / "bin" / "java", int(_FETCHED))


def _version(command: Path) -> int | None:
    """The major version of *command*, or None where it doesn't run. Asks the `release` file, then Java itself."""
    try:
        text = (command.resolve().parent.parent / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r'JAVA_VERSION="([\d.]+)', text)
    if match is None or not os.access(command, os.X_OK):
        try:
            done = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        match = re.search(r'version "([\d.]+)', done.stderr + done.stdout)
        if match is None:
            return None
    parts = match.group(1).split(".")
    return int(parts[1] if parts[0] == "1" and len(parts) > 1 else parts[0])  # Java 8 calls itself 1.8
