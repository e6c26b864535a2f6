"""Faust's hook for extensions: sets up each app whose broker URL has our scheme, before it makes its first topic.

Faust loads the entry points of `faust.fixups` with every app; the app is set up when its configuration is read.
"""

from __future__ import annotations

from typing import Any

from faust.fixups.base import Fixup as FaustFixup

__all__ = ["SCHEME", "Fixup"]

#: Of the broker URL.
SCHEME = "llmagentos"


class Fixup(FaustFixup):
    """Sets up one app; see :func:`llmagentos.streams.transport.patches.set_up`."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        app.on_after_configured.connect(self._configured, weak=True)

    def enabled(self) -> bool:
        """Always: the app then holds this object, which its signal knows only weakly."""
        return True

    def _configured(self, *args: Any, **kwargs: Any) -> None:
        conf = self.app.conf
        if conf.broker_consumer[0].scheme == SCHEME:
            from llmagentos.streams.transport.patches import set_up

            set_up(self.app)
