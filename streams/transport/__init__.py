"""Faust's transport on librdkafka: `llmagentos://host:port`, found by its URL scheme.

A plain Faust program runs on it with nothing changed but its broker URL. How it differs from Faust's own, and what
it guarantees, is in docs/explanation/transport.md.
"""

from __future__ import annotations

from llmagentos.streams.transport.sink import TP, Sink, attach
from llmagentos.streams.transport.transport import Transport, configure

__all__ = ["TP", "Sink", "Transport", "attach", "configure"]
