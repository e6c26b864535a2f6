"""Checking a module before it is deployed: in a process of its own, so that its import can do no harm here.

    python -m llmagentos.agents.checking DEPLOYMENT TARGET [--provision] [--unless-open]

The child prints one JSON object on stdout; what the module prints while it is imported goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from llmagentos.agents.deployment import Served
from llmagentos.streams import errors
from llmagentos.streams.errors import DeploymentError, LLMAgentOSError
from llmagentos.streams.settings import Settings

if TYPE_CHECKING:
    from llmagentos.agents.cards import Card
    from llmagentos.agents.loading import LoadedModule

__all__ = ["CHECK_S", "Checked", "check"]

#: An import that takes longer than this does work of its own (it reads models, or calls the network).
CHECK_S = 120.0


class Checked:
    """What a module turned out to hold.

    Attributes:
        version: of its source.
        agents: what it serves.
        folders: of its source and of the sources beside it that it imports.
        cards_before: the deployment's cards, which those of this module have replaced.
        open: messages are under way that the module has to go on with; nothing was made then.
    """

    def __init__(
        self, version: str, agents: list[Served], folders: list[Path], cards_before: list[Card], *, open_: bool = False
    ) -> None:
        self.version = version
        self.agents = agents
        self.folders = folders
        self.cards_before = cards_before
        self.open = open_


def check(
    name: str,
    target: str,
    *,
    cwd: str,
    environment: Mapping[str, str],
    provision: bool = True,
    unless_open: bool = False,
    timeout_s: float = CHECK_S,
) -> Checked:
    """Import *target* as a worker would, and make its topics and cards.

    Args:
        name: of the deployment.
        provision: False only imports.
        unless_open: make nothing where messages are under way; see :attr:`Checked.open`.

    Raises:
        DeploymentError: the import fails (with the module's traceback), takes too long, or has no agents; or
            another deployment serves one of them.
        LLMAgentOSError: what the child raised, as the same class: the broker is out of reach, a topic differs.
    """
    command = [sys.executable, "-m", "llmagentos.agents.checking", name, target]
    command += ["--provision"] * provision + ["--unless-open"] * unless_open
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeploymentError(
            f"{target} was still importing after {timeout_s:g} s" + _printed(error.stderr),
            fix="do slow work in the handlers, or on their first message, rather than at import",
        ) from error
    try:
        answer: dict[str, Any] = orjson.loads(done.stdout)
    except orjson.JSONDecodeError:
        raise DeploymentError(
            f"{target} ended the process that imported it (exit status {done.returncode})" + _printed(done.stderr),
            fix="a module must not end or kill its process at import",
        ) from None
    if "error" in answer:
        kind = getattr(errors, answer["error"], DeploymentError)
        raise kind(answer["what"], fix=answer["fix"], kept=answer["kept"])
    from llmagentos.agents.cards import Card  # brings Kafka's client, which most commands need not

    return Checked(
        answer["version"],
        [Served.model_validate(agent) for agent in answer["agents"]],
        [Path(folder) for folder in answer["folders"]],
        [Card(**card) for card in answer["cards_before"]],
        open_=answer["open"],
    )


def _printed(output: bytes | str | None) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return f"; it printed:\n{text.strip()[-4_000:]}" if text.strip() else ""


def _folders(root: Path) -> set[Path]:
    """The folders, from *root* down, of what is imported; what was installed is not the user's to edit."""
    files = (Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None)))
    below = {file.parent for file in files if file.suffix == ".py" and file.is_relative_to(root)}
    return {root} | {folder for folder in below if not {"site-packages", "dist-packages"} & set(folder.parts)}


def _anything_open(settings: Settings, deployment: str, loaded: LoadedModule) -> bool:
    from llmagentos.agents.rehearsing import anything, opened
    from llmagentos.streams.registry import open_registry
    from llmagentos.streams.wire import Codec

    work, gone = opened(settings, Codec(open_registry(settings)), deployment, loaded)
    try:
        return anything(work, gone)
    finally:
        work.close()


def main() -> None:
    """The child."""
    parser = argparse.ArgumentParser()
    parser.add_argument("deployment")
    parser.add_argument("target")
    parser.add_argument("--provision", action="store_true")
    parser.add_argument("--unless-open", action="store_true")
    arguments = parser.parse_args()
    answer = os.dup(1)  # before the module prints
    os.dup2(2, 1)
    from llmagentos.agents.faults import Plan
    from llmagentos.agents.loading import load

    try:
        loaded = load(arguments.target)
        settings = Settings.load()
        Plan.parse(settings.faults, loaded.agents)  # a worker would refuse to start, and say so only to its log
        before: list[Card] = []
        under_way = arguments.unless_open and _anything_open(settings, arguments.deployment, loaded)
        if arguments.provision and not under_way:
            from llmagentos.agents.provision import provision

            provision(settings, arguments.deployment, loaded, before=before)
        result: dict[str, Any] = {
            "version": loaded.version,
            "agents": [
                {
                    "name": agent.name,
                    "topic": agent.topic or settings.topic(f"agent.{agent.name}"),
                    "description": agent.description,
                }
                for agent in loaded.agents.values()
            ],
            "open": under_way,
            "cards_before": [card.record() for card in before],
            "folders": sorted(str(folder) for folder in _folders(loaded.path.parent)),
        }
    except LLMAgentOSError as error:
        result = {"error": type(error).__name__, "what": error.what, "fix": error.fix, "kept": error.kept}
    with os.fdopen(answer, "wb") as stdout:
        stdout.write(orjson.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a thread that the module left running must not hold us


if __name__ == "__main__":
    main()
