"""What faults need beyond Python and Java, whether it is there, and how to get it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NEEDS", "Need", "faketime_library", "lacking"]


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a fault needs.

    Attributes:
        name: "root", or that of a Debian package.
        what_for: in words.
        there: looks for it.
        fix: how to get it.
    """

    name: str
    what_for: str
    there: Callable[[], bool]
    fix: str


def faketime_library() -> Path | None:
    """libfaketime for LD_PRELOAD: where Debian, or a build from source, puts it."""
    for folder in (*Path("/usr/lib").glob("*-linux-gnu/faketime"), Path("/usr/local/lib/faketime")):
        library = folder / "libfaketime.so.1"
        if library.exists():
            return library
    return None


def _program(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") for name in names)


def _package(name: str, what_for: str, there: Callable[[], bool]) -> Need:
    return Need(name, what_for, there, f"`apt-get install {name}` (Debian, Ubuntu)")


#: By name.
NEEDS: dict[str, Need] = {
    need.name: need
    for need in (
        Need(
            "root",
            "network namespaces, and a small disk for a broker",
            lambda: os.geteuid() == 0,
            "run it as root (in a container or VM of its own)",
        ),
        _package("iproute2", "a network namespace with a cable to it", _program("ip")),
        _package("iptables", "dropping the packets of a network namespace", _program("iptables")),
        _package("util-linux", "starting a worker in a network namespace", _program("nsenter")),
        _package("mount", "a small disk for a broker", _program("mount", "umount")),
        _package("libfaketime", "a worker whose clock is off", lambda: faketime_library() is not None),
        Need("gcc", "a worker whose clock is off", _program("cc"), "`apt-get install gcc libc6-dev` (Debian, Ubuntu)"),
    )
}


def lacking(*names: str) -> list[str]:
    """Which of the needs *names* are not met, in words for a person: what, and how to get it."""
    return [f"{need.name}: {need.fix}" for need in map(NEEDS.__getitem__, names) if not need.there()]
