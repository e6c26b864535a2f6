"""Local models: real weights, which the test makes, loaded and asked by the real libraries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmagentos.agents.models import Models, Request, Turn
from llmagentos.agents.models.local import Local
from llmagentos.streams.clock import Clock
from llmagentos.streams.errors import ContextTooLong, ModelFailure, SettingsError
from llmagentos.streams.settings import Settings

torch = pytest.importorskip("torch", reason="needs torch: pip install 'llmagentos[train]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'llmagentos[train]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WORDS = (
    "user",
    "assistant",
    "system",
    ":",
    "what",
    "is",
    "rain",
    "sun",
    "and",
    "a",
    "the",
    "of",
    "sea",
    "wind",
    "so",
    "why",
    "how",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some thousand random weights, and a vocabulary of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    path = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<end>", "<unknown>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    ).save_pretrained(path)
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@asynccontextmanager
async def asked(folder: Path, *names: str, **more: Any) -> AsyncGenerator[Models]:
    settings = Settings.load(models={each: {"provider": "transformers", "path": str(folder)} for each in names}, **more)
    models = Models(settings, Clock())
    try:
        yield models
    finally:
        await models.close()


def question(text: str, most: int = 12, temperature: float | None = None) -> Request:
    return Request([{"role": "user", "content": text}], max_tokens=most, temperature=temperature)


async def test_it_answers_piece_by_piece_and_alike_alone_and_in_a_batch(folder: Path) -> None:
    texts = ["what is rain", "why", "how is the wind and the sun of the sea", "so"]
    async with asked(folder, "tiny") as models:
        pieces: list[str] = []

        async def hear(text: str) -> None:
            pieces.append(text)

        alone = [(await models.ask("tiny", question(text), hear))[0] for text in texts]
        assert "".join(pieces) == "".join(turn.text for turn in alone)
        assert len(pieces) > len(texts)
        local = models.provider("tiny")
        assert isinstance(local, Local)
        assert local.state == "loaded"
        assert local.batches == [1, 1, 1, 1]
        together = await asyncio.gather(*(models.ask("tiny", question(text)) for text in texts))
        assert [turn.text for turn, _ in together] == [turn.text for turn in alone]
        assert sum(local.batches) == 8
        assert len(local.batches) < 8
        turn, usage = together[0]
        assert (usage.tokens_in, usage.tokens_out) == (turn.tokens_in, turn.tokens_out)
        assert 0 < turn.tokens_out <= 12
        assert (await models.ask("tiny", question("so", 3)))[0].finish in ("length", "stop")
        assert (await models.ask("tiny", question("so", temperature=2.0)))[0].tokens_out > 0


async def test_one_that_is_left_in_mid_answer_answers_the_next(folder: Path) -> None:
    async with asked(folder, "tiny") as models:
        provider = models.provider("tiny")
        async with aclosing(provider.ask(question("why", 50))) as pieces:
            async for _ in pieces:
                break
        assert isinstance((await models.ask("tiny", question("so")))[0], Turn)


async def test_the_one_unused_longest_makes_room(folder: Path) -> None:
    async with asked(folder, "a") as models:
        provider = models.provider("a")
        assert isinstance(provider, Local)
        size = provider.size
    async with asked(folder, "a", "b", "c", model_memory_bytes=2 * size) as models:
        for name in ("a", "b", "a", "c"):
            await models.ask(name, question("so"))
        assert models.room.loaded == ["a", "c"]
        assert models.provider("b").state == "unloaded"  # type: ignore[attr-defined]
        await models.ask("b", question("so"))
        assert models.room.loaded == ["c", "b"]
    async with asked(folder, "a", model_memory_bytes=size - 1) as models:
        with pytest.raises(ModelFailure, match="bytes of weights"):
            await models.ask("a", question("so"))


async def test_what_it_can_not_do_is_told(folder: Path, tmp_path: Path) -> None:
    async with asked(folder, "tiny") as models:
        with pytest.raises(ContextTooLong, match="takes 64"):
            await models.ask("tiny", question("rain " * 100))
        with pytest.raises(ModelFailure, match="tools"):
            await models.ask("tiny", Request([{"role": "user", "content": "so"}], [{"name": "x"}]))
    async with asked(tmp_path, "none") as models:
        with pytest.raises(SettingsError, match=r"config\.json"):
            await models.ask("none", question("so"))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    async with asked(tmp_path, "pickled") as models:
        with pytest.raises(SettingsError, match="never loaded"):
            await models.ask("pickled", question("so"))
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    async with asked(tmp_path, "broken") as models:
        with pytest.raises(SettingsError, match="can't be loaded"):
            await models.ask("broken", question("so"))
