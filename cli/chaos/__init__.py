"""`llmagentos chaos`: faults in a cluster of three brokers under load, and a judge that counts from outside."""

from llmagentos.cli.chaos.command import register

__all__ = ["register"]
