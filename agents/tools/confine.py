"""What a process may do from here on: limits of the kernel that it can't take back, set by the process itself.

Resource limits (`setrlimit`), a domain of files that it may write and processes that it may signal (Landlock, Linux
5.13 and newer), and a filter of system calls by which it starts no further process (seccomp). All three need no
privilege, and hold for everything that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Limits", "confine", "die_with_parent", "landlock_version"]

_MB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call of a tool that runs apart may use.

    Attributes:
        memory_mb: beyond what the function's module takes; more raises MemoryError in it.
        cpu_s: seconds of CPU, of all its threads together; None: as the tool's timeout.
        file_mb: of each file that it writes, all of them in its private folder.
        open_files: files and sockets open at once.
        output_bytes: of its result, as text.
        fork: whether it may start processes; whatever is left of them ends with the call.
    """

    memory_mb: int = 512
    cpu_s: float | None = None
    file_mb: int = 10
    open_files: int = 256
    output_bytes: int = 1_000_000
    fork: bool = False


# -- libc -----------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)

#: linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38


def _prctl(option: int, *values: object) -> None:
    given = [*values, *([0] * (4 - len(values)))]
    arguments = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in given]
    if _libc.prctl(option, *arguments):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def die_with_parent(signal: int) -> None:
    """Have the kernel send *signal* to this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def adopt() -> None:
    """Have orphans among the descendants of this process become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def confine(limits: Limits, cpu_s: float, private: Path, hidden: Iterable[str] = ()) -> None:
    """Confine this process, for good.

    Args:
        private: the one folder that it may write in.
        hidden: folders at the root of the file system that it may not even read, but for *private*.
    """
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, held + limits.memory_mb * _MB),
        (resource.RLIMIT_CPU, max(1, -(-int(cpu_s * 1_000) // 1_000))),
        (resource.RLIMIT_FSIZE, limits.file_mb * _MB),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_privileges()
    version = landlock_version()
    if version:
        _landlock(version, private, frozenset(hidden))
    if not limits.fork:
        _forbid_processes()


def _drop_privileges() -> None:
    """Root's, one by one: of user 0 without them, the kernel asks for the same permissions as of anybody."""
    nobody = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of this process
    if _libc.capset(nobody, struct.pack("=6I", 0, 0, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset: privileges can't be dropped")


# -- Landlock: linux/landlock.h -------------------------------------------------------------------------------------

#: The system calls have these numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = _PATH_BENEATH = 1
_READ: Final = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_FILE: Final = 1 << 0 | 1 << 1 | 1 << 2  # what a rule about a file, not a folder, may say; and truncate, ioctl
#: All rights of the file system that a version of Landlock knows: 13 at first; refer, truncate, ioctl came later.
_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
#: From version 6 on: no signals, and no abstract sockets, to processes outside.
_SCOPES: Final = 1 << 0 | 1 << 1


def landlock_version() -> int:
    """Of the kernel's Landlock; 0: it has none."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))


def _landlock(version: int, private: Path, hidden: frozenset[str]) -> None:
    every = _RIGHTS[min(version, 5)]
    # struct landlock_ruleset_attr: of the file system, of the network (nothing is said of it), scopes
    attributes = struct.pack("=QQQ", every, 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock refuses a set of rules")
    readable = ["/"] if not hidden else [entry.path for entry in os.scandir("/") if entry.name not in hidden]
    for path, rights in [*((each, _READ) for each in readable), ("/dev/null", _FILE | every & 1 << 14)]:
        _allow(ruleset, path, rights if Path(path).is_dir() else rights & (_FILE | 1 << 14))
    _allow(ruleset, str(private), every)
    if _libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "Landlock refuses to restrict this process")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:  # a link at the root that leads nowhere
        return
    rule = struct.pack("=Qi", rights, place)
    failed = _libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    os.close(place)
    if failed:
        raise OSError(ctypes.get_errno(), f"Landlock refuses a rule for {path}")


# -- seccomp: linux/seccomp.h, linux/bpf_common.h -------------------------------------------------------------------

#: By machine: its number in linux/audit.h, that of clone, and of calls that it alone has (fork and vfork).
_MACHINES: Final = {"x86_64": (0xC000003E, 56, (57, 58)), "aarch64": (0xC00000B7, 220, ())}
_CLONE3, _CLONE_THREAD, _X32 = 435, 0x00010000, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def _forbid_processes() -> None:
    """Let this process have threads, but no children: fork raises PermissionError in it."""
    known = _MACHINES.get(platform.machine())
    if known is None:  # what is left there holds for the whole user, and not for root
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        return
    arch, clone, forks = known
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        refuse,  # a call by the numbers of another machine
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 0, 1, _X32),
        refuse,
    ]
    for number in forks:
        program += [(_EQUAL, 0, 1, number), refuse]
    program += [
        # Its flags lie in memory, where no filter looks; told that there is none, libc uses clone.
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(head))  # SECCOMP_MODE_FILTER
