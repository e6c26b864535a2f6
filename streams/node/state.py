"""What the node remembers in its data folder between `down` and `up`."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from llmagentos.streams.errors import NodeError

__all__ = ["STATE_FILE", "State", "new_cluster_id", "write_whole"]

#: In the data folder.
STATE_FILE = "node.json"


@dataclass(frozen=True, slots=True)
class State:
    """Of one data folder.

    Attributes:
        cluster_id: Kafka's, made at the first start.
        ports: of each broker, for clients, and `controller_ports` for its controller.
        redis_port: of Redis.
        fixed: the first of `ports` was asked for with --port; no other may take its place.
    """

    cluster_id: str
    ports: tuple[int, ...]
    controller_ports: tuple[int, ...]
    redis_port: int
    fixed: bool = False

    @property
    def nodes(self) -> int:
        """How many brokers."""
        return len(self.ports)

    def save(self, home: Path) -> None:
        """Write it into the data folder *home*."""
        write_whole(home / STATE_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, home: Path) -> State | None:
        """Of the data folder *home*; None where no node was started yet.

        Raises:
            NodeError: the file is damaged.
        """
        path = home / STATE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                cluster_id=str(content["cluster_id"]),
                ports=tuple(int(port) for port in content["ports"]),
                controller_ports=tuple(int(port) for port in content["controller_ports"]),
                redis_port=int(content["redis_port"]),
                fixed=bool(content.get("fixed", False)),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise NodeError(
                f"{path} is damaged: {error!r}",
                kept=f"the data of Kafka and Redis, in {home}",
                fix=f"delete {path}: the next `llmagentos up` makes it anew from the data",
            ) from error


def new_cluster_id() -> str:
    """A UUID as Kafka writes it: base64 for URLs, no padding."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()).startswith("-"):
        pass  # Kafka's tools would take it for an option
    return text


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
