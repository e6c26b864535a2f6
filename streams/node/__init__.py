"""The local node: one real Kafka (or three) and one real Redis, without Docker or root."""

from llmagentos.streams.node.node import KAFKA_VERSION, Node, Part, Status

__all__ = ["KAFKA_VERSION", "Node", "Part", "Status"]
