"""The models of a worker: those that the settings name, asked with retries and fallbacks.

One for a worker, so that its agents share connections. A model is opened when it is first asked.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from llmagentos.agents.models.budgets import Budgets
from llmagentos.agents.models.cache import Cache
from llmagentos.agents.models.endpoint import Endpoint
from llmagentos.agents.models.local import Local, Room
from llmagentos.agents.models.provider import Provider, Request, Turn, Usage
from llmagentos.agents.models.scripted import Scripted
from llmagentos.agents.models.window import fit
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import ContextTooLong, ModelFailure, SettingsError
from llmagentos.streams.settings import ModelSettings, Settings

__all__ = ["Models"]

log = logging.getLogger(__name__)

#: The first pause before a model is asked again, where its endpoint names none; doubled for each further.
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 20.0

#: Of the window, where a model finds a question too long that was made to fit: it counts otherwise than we estimate.
LESS: Final = 0.6

#: Takes the text of an answer as it comes.
Hear = Callable[[str], Awaitable[None]]


class Models:
    """See the module.

    Args:
        clock: that pauses go by.

    Attributes:
        budgets: what may be spent.
        room: of the models that run in this process.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._open: dict[str, Provider] = {}
        self._cache = Cache(settings)
        self.budgets = Budgets(settings)
        self.room = Room(settings.model_memory_bytes)

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

    async def ask(
        self, name: str | None, request: Request, hear: Hear | None = None, *, tenant: str = ""
    ) -> tuple[Turn, Usage]:
        """The answer of a model, or of one of its fallbacks; and what it cost.

        What was heard can't be taken back: a model that breaks off behind its first words is not asked again here.

        Args:
            hear: told of the text as it comes.
            tenant: who pays.

        Raises:
            ModelFailure: all have failed; the last one's. ContextTooLong: the question is too long for the model.
            SettingsError: there is no such model, or it can't be opened.
        """
        first, settings = self.named(name)
        if not settings.cache_s:
            return await self._of_chain([first, *settings.fallback], request, hear)
        key = self._cache.key(tenant, first, settings, request)
        if (kept := await self._cache.get(key)) is not None:
            if hear is not None and kept.text:
                await hear(kept.text)
            return kept, Usage(first)
        turn, usage = await self._of_chain([first, *settings.fallback], request, hear)
        await self._cache.put(key, turn, settings.cache_s)
        return turn, usage

    async def _of_chain(self, chain: Sequence[str], request: Request, hear: Hear | None) -> tuple[Turn, Usage]:
        heard = False

        async def listen(text: str) -> None:
            nonlocal heard
            heard = True
            if hear is not None:
                await hear(text)

        for number, each in enumerate(chain):
            try:
                return await self._fitting(each, request, listen, lambda: heard)
            except ModelFailure as error:
                if (heard and hear is not None) or number + 1 == len(chain):
                    raise
                log.warning("model %s failed, %s is asked: %s", each, chain[number + 1], error.what)
        raise AssertionError("the last one answers or raises")

    async def _fitting(self, name: str, request: Request, hear: Hear, heard: Callable[[], bool]) -> tuple[Turn, Usage]:
        """The answer to as much of *request* as the model takes."""
        _, settings = self.named(name)
        spent = Usage()

        async def summarise(about: Request) -> str:
            nonlocal spent
            turn = await self._persistent(name, about, _deaf, lambda: False)
            spent += self._usage(name, about, turn)
            return turn.text

        if settings.max_tokens and not request.max_tokens:
            request = replace(request, max_tokens=settings.max_tokens)
        for window in (settings.window, int(settings.window * LESS)):
            fitting = await fit(request, window, name=name, count=self.provider(name).count, summarise=summarise)
            try:
                turn = await self._persistent(name, fitting, hear, heard)
            except ContextTooLong:
                if not window or window != settings.window:
                    raise
            else:
                return turn, self._usage(name, fitting, turn) + spent
        raise AssertionError("the second one answers or raises")

    async def _persistent(self, name: str, request: Request, hear: Hear, heard: Callable[[], bool]) -> Turn:
        _, settings = self.named(name)
        attempt = 0
        while True:
            try:
                return await self._once(name, request, hear)
            except ModelFailure as error:
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

    async def _once(self, name: str, request: Request, hear: Hear) -> Turn:
        async with aclosing(self.provider(name).ask(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Turn):
                    return piece
                await hear(piece)
        raise AssertionError(f"model {name} gave no turn")

    def provider(self, name: str) -> Provider:
        """That of the model *name*, opened."""
        provider = self._open.get(name)
        if provider is None:
            _, settings = self.named(name)
            provider = self._open[name] = self._opened(name, settings)
        return provider

    def _opened(self, name: str, settings: ModelSettings) -> Provider:
        if settings.provider == "openai":
            return Endpoint(name, settings)
        if settings.provider == "transformers":
            return Local(name, settings, self.room)
        if settings.script is None:
            raise SettingsError(
                f"scripted model {name!r} has no script", fix=f"set models.{name}.script to a JSON file"
            )
        return Scripted.read(settings.script, name)

    def _usage(self, name: str, request: Request, turn: Turn) -> Usage:
        """What a turn cost; counted here, where the provider says no numbers."""
        settings, count = self._settings.models[name], self.provider(name).count
        tokens_in = turn.tokens_in if turn.tokens_in >= 0 else count(request)
        said = Request([{"role": "assistant", "content": turn.text + "".join(call.arguments for call in turn.calls)}])
        tokens_out = turn.tokens_out if turn.tokens_out >= 0 else count(said)
        return Usage(
            name, tokens_in, tokens_out, (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6
        )

    async def close(self) -> None:
        """Let all models go."""
        for provider in self._open.values():
            await provider.close()
        self._open.clear()
        await self.budgets.close()


async def _deaf(text: str) -> None:
    """Nobody is told."""
