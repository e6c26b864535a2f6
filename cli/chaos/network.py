"""A network namespace for one process, joined to this machine by a virtual cable that can be cut and mended.

The process in it reaches this machine at `Namespace.outside` only, so that what it talks to must listen there. Cutting
drops the packets of both directions inside the namespace: connections stay open and fall silent, as behind a switch
that died; nobody is told. Nothing of this machine's own network is touched, besides one address of a private range.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from llmagentos.streams.errors import NodeError

__all__ = ["Namespace"]

#: Each namespace gets a /30 of 10.203.0.0/16, by this process' id: 16,384 runs at once don't meet. A private range
#: that neither Docker (172.17) nor Kubernetes (10.244, 10.96) nor home routers (192.168) take by default.
_RANGE = "10.203"

#: For each call of ip and iptables; they answer in milliseconds, and iptables waits for its lock (-w).
_CALL_S = 20.0


@dataclass(frozen=True, slots=True)
class Namespace:
    """The namespace of one chaos run; there is nothing of it before :meth:`make`.

    Args:
        number: tells it from those of other runs: a process id.
    """

    number: int

    @property
    def name(self) -> str:
        """As `ip netns` knows it."""
        return f"chaos-{self.number}"

    @property
    def outside(self) -> str:
        """This machine's address on the cable."""
        return self._address(1)

    @property
    def path(self) -> str:
        """What `nsenter --net=` takes."""
        return f"/run/netns/{self.name}"

    def make(self) -> None:
        """Make it and its cable.

        Raises:
            NodeError: this user may not, or a program is missing; says which.
        """
        here, there = f"ch{self.number}h", f"ch{self.number}n"  # an interface's name has at most 15 characters
        _call("ip", "netns", "add", self.name)
        try:
            _call("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
            _call("ip", "addr", "add", f"{self.outside}/30", "dev", here)
            _call("ip", "link", "set", here, "up")
            _call("ip", "-n", self.name, "addr", "add", f"{self._address(2)}/30", "dev", there)
            for interface in (there, "lo"):
                _call("ip", "-n", self.name, "link", "set", interface, "up")
        except BaseException:
            self.remove()
            raise

    def cut(self) -> None:
        """From now on every packet between the namespace and this machine is lost."""
        for chain in ("INPUT", "OUTPUT"):
            _call(*self._iptables("-A", chain, "-j", "DROP"))

    def mend(self) -> int:
        """Let packets through again; returns how many were lost since :meth:`cut`. Does nothing where it is whole."""
        listed = _call(*self._iptables("-L", "-v", "-n", "-x"))
        lost = sum(int(line.split()[0]) for line in listed.splitlines() if line.split()[2:3] == ["DROP"])
        _call(*self._iptables("-F"))
        return lost

    def remove(self) -> None:
        """Remove it with its cable; processes that still run in it lose their network."""
        _call("ip", "netns", "delete", self.name)

    def _iptables(self, *words: str) -> Sequence[str]:
        return ("ip", "netns", "exec", self.name, "iptables", "-w", *words)

    def _address(self, host: int) -> str:
        network = self.number % 2**14 * 4
        return f"{_RANGE}.{network // 256}.{network % 256 + host}"


def _call(*command: str) -> str:
    """The output of a program; raises NodeError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_S, check=False)
    except OSError as error:
        raise NodeError(
            f"`{' '.join(command)}` can't be run: {error.strerror}",
            fix="`llmagentos chaos doctor` says what is missing",
        ) from error
    if done.returncode:
        raise NodeError(
            f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}",
            fix="`llmagentos chaos doctor` says what is missing",
        )
    return done.stdout
