"""Models that run in the worker itself, by `transformers`: a folder with weights as safetensors, and a tokenizer.

Questions that wait when a model is free are answered side by side, as one batch; those that come later wait for the
next one. Each model has a thread of its own, so that the worker goes on. Of several models, those unused longest are
unloaded where a further one needs the room. Nothing is ever unpickled, and no code of a model's folder is run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

from llmagentos.agents.models.provider import Request, Turn
from llmagentos.streams.errors import ContextTooLong, ModelFailure, SettingsError
from llmagentos.streams.settings import ModelSettings

__all__ = ["Local", "Room"]

#: Tokens of an answer that is given no other bound: some paragraphs.
MAX_TOKENS: Final = 1_024
#: Questions of a batch: beyond it a CPU gains nothing, and the memory of attention grows with each.
BATCH: Final = 16
#: Of a letter that has more bytes than its first token: the decoder says it while the rest is missing.
_UNFINISHED: Final = "\ufffd"

State = Literal["unloaded", "loaded"]


class Room:
    """The memory that local models may have together, in one worker.

    Args:
        most: bytes of weights; 0: no bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[Local, int] = {}  # those loaded, to their bytes: the one unused longest first
        self._lock = asyncio.Lock()

    @property
    def loaded(self) -> list[str]:
        """The names of those that are, the one unused longest first."""
        return [model.name for model in self._used]

    async def take(self, model: Local) -> None:
        """Have *model* loaded, and count it as used now; others that nobody asks go, as far as that is necessary.

        Raises:
            ModelFailure: there is no room for it, as others are being asked, or it is too large by itself.
        """
        async with self._lock:
            if model in self._used:
                self._used[model] = self._used.pop(model)
                return
            size = model.size
            for other in list(self._used):
                if not self._most or sum(self._used.values()) + size <= self._most:
                    break
                if not other.busy:
                    del self._used[other]
                    await other.unload()
            if self._most and sum(self._used.values()) + size > self._most:
                alone = size > self._most
                raise ModelFailure(
                    f"model {model.name!r} has {size:,} bytes of weights, and {self._most:,} are for local models"
                    + ("" if alone else f", of which {', '.join(self.loaded)} have what is missing"),
                    "refused" if alone else "overloaded",
                    fix="raise LLMAGENTOS_MODEL_MEMORY_BYTES, or deploy its agents apart",
                )
            await model.load()
            self._used[model] = size

    def forget(self, model: Local) -> None:
        """It is unloaded."""
        self._used.pop(model, None)


class _Asked:
    """A question in a batch."""

    def __init__(self, tokens: Sequence[int], request: Request, most: int) -> None:
        self.tokens = list(tokens)
        self.most = most
        self.temperature = request.temperature or 0.0
        self.said: list[int] = []
        self.told = ""
        self.finish = ""
        self.left = False  # who asked has gone
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[str | Turn | BaseException] = asyncio.Queue()

    def tell(self, piece: str | Turn | BaseException) -> None:
        """From the model's thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Local:
    """See the module.

    Attributes:
        name: of the model.
        state: whether its weights are in memory.
        batches: how many questions each batch had that it answered.
    """

    def __init__(self, name: str, settings: ModelSettings, room: Room) -> None:
        if settings.path is None or not (settings.path / "config.json").is_file():
            raise SettingsError(
                f"model {name!r} has no folder with a config.json: {settings.path}",
                fix=f"set models.{name}.path to a folder that `save_pretrained` wrote",
            )
        self.name = name
        self.state: State = "unloaded"
        self.batches: list[int] = []
        self._path: Path = settings.path
        self._room = room
        self._model: Any = None
        self._tokenizer: Any = None
        self._waiting: list[_Asked] = []
        self._asked = 0
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None

    @property
    def size(self) -> int:
        """Bytes of its weights.

        Raises:
            SettingsError: there are none as safetensors.
        """
        weights = sorted(self._path.glob("*.safetensors"))
        if not weights:
            raise SettingsError(
                f"model {self.name!r} has no *.safetensors in {self._path}",
                fix="save it anew with save_pretrained(folder, safe_serialization=True); pickled weights can run code,"
                " and are never loaded",
            )
        return sum(each.stat().st_size for each in weights)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._asked > 0

    async def load(self) -> None:
        """Have the weights in memory.

        Raises:
            SettingsError: they can't be read, or the libraries are missing.
        """
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix=f"model-{self.name}")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        self.state = "loaded"

    def _load(self) -> None:
        try:
            transformers = import_module("transformers")  # by name: type checkers need not have it
            import_module("torch")
        except ImportError as error:
            raise SettingsError(
                f"local model {self.name!r} needs torch and transformers: {error}",
                fix="pip install 'llmagentos[train]'",
            ) from None
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._path, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(self._path, use_safetensors=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"model {self.name!r} can't be loaded from {self._path}: {error}",
                fix="see that config.json, tokenizer.json and the weights belong together",
            ) from error
        self._tokenizer, self._model = tokenizer, model.eval()

    async def unload(self) -> None:
        """Let the weights go, when what is being answered is."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.to_thread(thread.shutdown)
        self._model = self._tokenizer = None
        self.state = "unloaded"
        self._room.forget(self)

    async def close(self) -> None:
        """See :class:`~llmagentos.agents.models.provider.Provider`."""
        with self._lock:
            for asked in self._waiting:
                asked.left = True
        await self.unload()

    def count(self, request: Request) -> int:
        """By the model's own tokenizer, once it is loaded."""
        from llmagentos.agents.models.window import estimate

        return estimate(request) if self._tokenizer is None else len(self._prompt(request))

    async def ask(self, request: Request) -> AsyncGenerator[str | Turn]:
        """See :class:`~llmagentos.agents.models.provider.Provider`."""
        if request.tools:
            raise ModelFailure(
                f"local model {self.name!r} is given tools, whose calls have no common form among local models",
                "refused",
                fix="serve it by an endpoint that knows the model's form (vLLM, llama.cpp), or ask it without tools",
            )
        self._asked += 1
        asked: _Asked | None = None
        try:
            await self._room.take(self)
            assert self._thread is not None
            prompt = await asyncio.get_running_loop().run_in_executor(None, self._prompt, request)
            longest = getattr(self._model.config, "max_position_embeddings", 0)
            if longest and len(prompt) >= longest:
                raise ContextTooLong(
                    f"the question has {len(prompt):,} tokens, and model {self.name!r} takes {longest:,}",
                    fix=f"set models.{self.name}.window = {longest}, so that what is too much is left out beforehand",
                )
            most = request.max_tokens or MAX_TOKENS
            asked = _Asked(prompt, request, min(most, longest - len(prompt)) if longest else most)
            with self._lock:
                self._waiting.append(asked)
            self._thread.submit(self._batch)
            while not isinstance(piece := await asked.pieces.get(), Turn):
                if isinstance(piece, BaseException):
                    raise ModelFailure(f"local model {self.name!r} failed: {piece}", "down") from piece
                yield piece
            yield piece
        finally:
            self._asked -= 1
            if asked is not None:
                asked.left = True

    def _prompt(self, request: Request) -> list[int]:
        messages = [{"role": each["role"], "content": each.get("content") or ""} for each in request.messages]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return self._tokenizer.encode(text, add_special_tokens=False)
        lines = [f"{each['role']}: {each['content']}" for each in messages]
        return self._tokenizer.encode("\n".join([*lines, "assistant:"]))

    # -- in the model's thread

    def _batch(self) -> None:
        """Answer those that wait now, if an earlier batch didn't."""
        with self._lock:
            batch = [asked for asked in self._waiting[:BATCH] if not asked.left]
            del self._waiting[:BATCH]
        if batch:
            self.batches.append(len(batch))
            try:
                self._generate(batch)
            except Exception as error:  # noqa: BLE001 - out of memory, say: it is theirs who asked
                for asked in batch:
                    asked.tell(error)

    def _generate(self, batch: Sequence[_Asked]) -> None:
        torch = import_module("torch")
        pad = self._tokenizer.pad_token_id or 0
        longest = max(len(asked.tokens) for asked in batch)
        rows = [[pad] * (longest - len(asked.tokens)) + asked.tokens for asked in batch]
        seen = [[0] * (longest - len(asked.tokens)) + [1] * len(asked.tokens) for asked in batch]
        with torch.inference_mode():
            tokens, mask = torch.tensor(rows), torch.tensor(seen)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            past: Any = None
            while not all(asked.finish or asked.left for asked in batch):
                out = self._model(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=past,
                    use_cache=True,
                )
                past = out.past_key_values
                chosen = [self._choose(asked, out.logits[row, -1]) for row, asked in enumerate(batch)]
                tokens = torch.tensor([[pad if token is None else token] for token in chosen])
                mask = torch.cat([mask, torch.ones((len(batch), 1), dtype=mask.dtype)], dim=-1)
                positions = positions[:, -1:] + 1

    def _choose(self, asked: _Asked, logits: Any) -> int | None:
        """The next token of one row, told to who asked; None: it has ended."""
        torch = import_module("torch")
        if asked.finish or asked.left:
            return None
        if asked.temperature > 0:
            token = int(torch.multinomial(torch.softmax(logits.float() / asked.temperature, -1), 1))
        else:
            token = int(logits.argmax())
        ends = self._model.generation_config.eos_token_id
        if token in (ends if isinstance(ends, list) else [ends]):
            asked.finish = "stop"
        else:
            asked.said.append(token)
            if len(asked.said) >= asked.most:
                asked.finish = "length"
        text = self._tokenizer.decode(asked.said, skip_special_tokens=True)
        if asked.finish or not text.endswith(_UNFINISHED):
            if len(text) > len(asked.told):
                asked.tell(text[len(asked.told) :])
            asked.told = text
        if asked.finish:
            asked.tell(Turn(text, (), len(asked.tokens), len(asked.said), asked.finish))
        return token
