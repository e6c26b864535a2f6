"""Loading a user's module: from a file or a dotted name to the agents that it defines."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import faust

from llmagentos.agents.agent import Agent
from llmagentos.streams.errors import DeploymentError, LLMAgentOSError

__all__ = ["LoadedModule", "load", "locate"]


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A user's module, imported.

    Attributes:
        target: as it was given: a path or a dotted name.
        module_name: of the module in `sys.modules`.
        path: of its source file.
        version: the first 12 hex digits of the SHA-256 of its source.
        agents: by name.
        app: the Faust app that the module defines, if it does.
    """

    target: str
    module_name: str
    path: Path
    version: str
    agents: dict[str, Agent]
    app: faust.App | None


def load(target: str) -> LoadedModule:
    """Import *target* and find its agents.

    A file's folder, or for a dotted name the working directory, is put on `sys.path`, so that a module finds its
    neighbours.

    Raises:
        DeploymentError: there is no such module, its import fails (with its traceback), or two agents have one
            name, or it has none and no Faust app either.
    """
    path = locate(target)
    name = path.stem if target.endswith(".py") else target
    if path.name == "__init__.py" and target.endswith(".py"):
        raise DeploymentError(f"{target} is a package", fix="give its dotted name in place of the file")
    folder = str(path.parent) if target.endswith(".py") else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = _import_file(name, path) if target.endswith(".py") else importlib.import_module(name)
    except LLMAgentOSError as error:  # a wrong @agent: its text says where and what
        raise DeploymentError(f"{target} can't be loaded: {error.what}", fix=error.fix) from error
    except (Exception, SystemExit) as error:
        raise DeploymentError(
            f"{target} failed to import:\n{_users_traceback(error)}",
            fix="mend the module; what is deployed now keeps running",
        ) from error
    agents: dict[str, Agent] = {}
    for value in vars(module).values():
        if isinstance(value, Agent) and agents.setdefault(value.name, value) is not value:
            raise DeploymentError(
                f"{target} defines two agents named {value.name!r}: {agents[value.name].source} and {value.source}",
                fix="give each its own name",
            )
    app = next((value for value in vars(module).values() if isinstance(value, faust.App)), None)
    if not agents and app is None:
        raise DeploymentError(
            f"{target} defines no agent", fix="decorate an async function with @agent (from llmagentos.agents)"
        )
    return LoadedModule(target=target, module_name=name, path=path, version=version_of(path), agents=agents, app=app)


def locate(target: str) -> Path:
    """The source file of *target*, without running it (parents of a dotted name are imported).

    Raises:
        DeploymentError: there is none.
    """
    if target.endswith(".py"):
        path = Path(target).expanduser().resolve()
        if not path.is_file():
            raise DeploymentError(f"there is no file {target!r} in {Path.cwd()}", fix="give the path of a Python file")
        return path
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    try:
        spec = importlib.util.find_spec(target)
    except (ImportError, ValueError) as error:
        raise DeploymentError(
            f"there is no module {target!r}: {error}", fix="give a dotted name that imports from here, or a .py file"
        ) from error
    if spec is None or spec.origin is None:
        raise DeploymentError(
            f"there is no module {target!r}", fix="give a dotted name that imports from here, or a .py file"
        )
    return Path(spec.origin)


def version_of(path: Path) -> str:
    """The first 12 hex digits of the SHA-256 of a source file: enough to tell versions apart in a listing."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _import_file(name: str, path: Path) -> ModuleType:
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        raise DeploymentError(
            f"{path.name} would hide the module {name!r}, which is imported already", fix="rename the file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DeploymentError(f"{path} can't be imported", fix="give a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, so that pickle, dataclasses and its neighbours find it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _users_traceback(error: BaseException) -> str:
    """The traceback from the user's first frame on: ours and importlib's before it say nothing to them."""
    frames = traceback.TracebackException.from_exception(error)
    own = {__file__}
    while frames.stack and (frames.stack[0].filename in own or "importlib" in frames.stack[0].filename):
        frames.stack.pop(0)
    return "".join(frames.format()).rstrip()
