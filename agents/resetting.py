"""Resetting a deployment: its workers leave, its group's offsets change, and as many workers start again.

What a reset means for offsets and journals is in :mod:`llmagentos.streams.reset`.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Mapping, Sequence

from llmagentos.agents.cards import read_cards
from llmagentos.agents.deploying import START_S, Watcher, scale
from llmagentos.agents.deployment import Deployments
from llmagentos.streams.admin import Admin
from llmagentos.streams.errors import DeploymentError, InputError
from llmagentos.streams.registry import open_registry
from llmagentos.streams.reset import Move, Target, apply, plan
from llmagentos.streams.settings import Settings
from llmagentos.streams.wire import Codec

__all__ = ["Reset"]


class Reset:
    """A reset of one deployment, planned.

    Args:
        agents: only these of it; none: all.

    Attributes:
        moves: what it does to each inbox partition, as things stand.
        workers: how many of this machine leave and start again.

    Raises:
        DeploymentError: nothing of that name was ever deployed.
        InputError: it has no such agent, or *to* is no place there.
        BrokerError: the cluster does not answer.
    """

    def __init__(self, settings: Settings, deployment: str, to: str, agents: Sequence[str] = ()) -> None:
        target = Target.parse(to)
        self._settings = settings
        self._codec = Codec(open_registry(settings))
        self.deployment = deployment
        inputs = self._inputs(agents)
        if target.offsets is not None and len(inputs) > 1:
            raise InputError(
                f"--to {to} names offsets of partitions, and {deployment} has {len(inputs)} agents",
                fix="say which one is meant: --agent NAME",
            )
        self.moves: list[Move] = plan(settings, self._codec, deployment, inputs, target)
        local = (
            Deployments(settings.home).find(deployment) if deployment in Deployments(settings.home).names() else None
        )
        self.workers = local.workers if local is not None and not local.removed else 0
        self._local = local is not None

    def _inputs(self, agents: Sequence[str]) -> Mapping[str, str]:
        cards = read_cards(self._settings, self._codec)
        inputs = {name: card.topic for name, card in sorted(cards.items()) if card.deployment == self.deployment}
        if not inputs:
            there = ", ".join(sorted({card.deployment for card in cards.values()}))
            raise DeploymentError(
                f"no agent of a deployment {self.deployment!r} is known" + (f"; there are: {there}" if there else ""),
                fix="`llmagentos agents` lists agents and their deployments; deploy it first",
            )
        for name in agents:
            if name not in inputs:
                raise InputError(f"{self.deployment} has no agent {name!r}; it has: {', '.join(inputs)}")
        return {name: topic for name, topic in inputs.items() if not agents or name in agents}

    def run(self, *, timeout_s: float = START_S, watch: Watcher | None = None) -> None:
        """Do it. Where it fails before the offsets are committed, the workers start again with nothing changed.

        Raises:
            DeploymentError: workers don't leave, or don't start. BrokerError: the cluster does not answer, or the
                group has workers elsewhere.
        """
        if self.workers:
            scale(self._settings, self.deployment, 0, timeout_s=timeout_s, watch=watch)
        try:
            self._refuse_members()
            asyncio.run(apply(self._settings, self._codec, self.deployment, self.moves, _who()))
        finally:
            if self.workers:
                scale(self._settings, self.deployment, self.workers, timeout_s=timeout_s, watch=watch)

    def _refuse_members(self) -> None:
        members = Admin(self._settings).members([self.deployment])[self.deployment]
        if members:
            raise DeploymentError(
                f"{self.deployment} has {len(members)} worker{'s' * (len(members) != 1)} that this machine doesn't run",
                fix="scale it to 0 where they run, and reset again",
                kept="the committed offsets, as they were",
            )


def _who() -> str:
    try:
        return f"reset by {getpass.getuser()}"
    except (KeyError, OSError):  # a container's user has no name
        return "reset"
