"""The models of a worker: those that the settings name, asked with retries and fallbacks.

One for a worker, so that its agents share connections. A model is opened when it is first asked.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from llmagentos.agents.models.endpoint import Endpoint
from llmagentos.agents.models.provider import Failure, Provider, Request, Turn, Usage
from llmagentos.agents.models.scripted import Scripted
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import SettingsError
from llmagentos.streams.settings import ModelSettings, Settings

__all__ = ["Models"]

log = logging.getLogger(__name__)

#: The first pause before a model is asked again, where its endpoint names none; doubled for each further.
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 20.0

#: Takes the text of an answer as it comes.
Hear = Callable[[str], Awaitable[None]]


class Models:
    """See the module.

    Args:
        clock: that pauses go by.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._open: dict[str, Provider] = {}

    def named(self, name: str | None) -> tuple[str, ModelSettings]:
        """The model *name*, or the one that is meant where none is named.

        Raises:
            SettingsError: there is no such model; lists those that there are.
        """
        models = self._settings.models
        wanted = name or self._settings.model or (next(iter(models)) if len(models) == 1 else "")
        found = models.get(wanted)
        if found is not None:
            return wanted, found
        there = ", ".join(sorted(models))
        if not models:
            what, fix = "no model is configured", "add [models.NAME] to llmagentos.toml; see docs/howto/models.md"
        elif not wanted:
            what, fix = "no model is named", f"pass model=..., or set LLMAGENTOS_MODEL to one of: {there}"
        else:
            what, fix = f"no model is named {wanted!r}", f"these are configured: {there}"
        raise SettingsError(what, fix=fix)

    async def ask(self, name: str | None, request: Request, hear: Hear | None = None) -> tuple[Turn, Usage]:
        """The answer of a model, or of one of its fallbacks; and what it cost.

        What was heard can't be taken back: a model that breaks off behind its first words is not asked again here.

        Raises:
            Failure: all have failed; the last one's. ContextTooLong: the question is too long for the model.
            SettingsError: there is no such model, or it can't be opened.
        """
        first, settings = self.named(name)
        chain = [first, *settings.fallback]
        heard = False

        async def listen(text: str) -> None:
            nonlocal heard
            heard = True
            if hear is not None:
                await hear(text)

        for number, each in enumerate(chain):
            try:
                turn = await self._persistent(each, request, listen, lambda: heard)
            except Failure as error:
                if (heard and hear is not None) or number + 1 == len(chain):
                    raise
                log.warning("model %s failed, %s is asked: %s", each, chain[number + 1], error.what)
            else:
                return turn, self._usage(each, request, turn)
        raise AssertionError("the last one answers or raises")

    async def _persistent(self, name: str, request: Request, hear: Hear, heard: Callable[[], bool]) -> Turn:
        _, settings = self.named(name)
        attempt = 0
        while True:
            try:
                return await self._once(name, settings, request, hear)
            except Failure as error:
                pause_s = min(BACKOFF_S * 2**attempt, BACKOFF_MAX_S) * random.uniform(0.8, 1.2)
                if error.after_s is not None:
                    pause_s = error.after_s
                if heard() or not error.passes or attempt >= settings.retries or pause_s > settings.retry_after_max_s:
                    raise
                attempt += 1
                log.warning(
                    "model %s, try %d of %d, again in %.1f s: %s",
                    name, attempt, settings.retries + 1, pause_s, error.what,
                )  # fmt: skip
            await self._clock.sleep(pause_s)

    async def _once(self, name: str, settings: ModelSettings, request: Request, hear: Hear) -> Turn:
        if settings.max_tokens and not request.max_tokens:
            request = replace(request, max_tokens=settings.max_tokens)
        async for piece in self.provider(name).ask(request):
            if isinstance(piece, Turn):
                return piece
            await hear(piece)
        raise AssertionError(f"model {name} gave no turn")

    def provider(self, name: str) -> Provider:
        """That of the model *name*, opened."""
        provider = self._open.get(name)
        if provider is None:
            _, settings = self.named(name)
            provider = self._open[name] = _provider(name, settings)
        return provider

    def _usage(self, name: str, request: Request, turn: Turn) -> Usage:
        settings = self._settings.models[name]
        cost = max(0, turn.tokens_in) * settings.price_in + max(0, turn.tokens_out) * settings.price_out
        return Usage(name, max(0, turn.tokens_in), max(0, turn.tokens_out), cost / 1e6)

    async def close(self) -> None:
        """Let all models go."""
        for provider in self._open.values():
            await provider.close()
        self._open.clear()


def _provider(name: str, settings: ModelSettings) -> Provider:
    if settings.provider == "openai":
        return Endpoint(name, settings)
    if settings.script is None:
        raise SettingsError(f"scripted model {name!r} has no script", fix=f"set models.{name}.script to a JSON file")
    return Scripted.read(settings.script, name)
