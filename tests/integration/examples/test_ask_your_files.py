"""The example `ask-your-files`: a folder read by many readers, and asked with and without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmagentos.agents.testing import Agents
from llmagentos.agents.testing.endpoint import ModelEndpoint

LIBRARIAN = Path(__file__).parents[3] / "examples" / "ask-your-files" / "librarian.py"
#: Seconds: readers load the embedding model first, on a machine that may be busy.
PATIENCE_S = 120


async def test_a_folder_is_read_and_asked(agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMAGENTOS_KNOWLEDGE", str(tmp_path / "house.db"))
    house = tmp_path / "house"
    house.mkdir()
    (house / "rules.md").write_text("# Bicycles\n\nBicycles are kept in the cellar, never in the hallway.\n")
    (house / "heating.txt").write_text("The boiler is serviced every autumn by the firm Holm.\n")
    (house / "scan.pdf").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (house / "gone.txt").write_text("The attic is let to a painter.\n")

    async with agents.run(LIBRARIAN) as run:
        said = (await run.ask("librarian", f"read {house}", timeout=PATIENCE_S)).text
        assert "4 files, 3 new passages" in said
        assert "scan.pdf says .pdf, but is a PNG image" in said
        (house / "gone.txt").unlink()
        assert "3 files, 0 new passages" in (await run.ask("librarian", f"read {house}", timeout=PATIENCE_S)).text

        answer = (await run.ask("librarian", "Where may I put my bike?", timeout=PATIENCE_S)).text
        assert "Bicycles are kept in the cellar, never in the hallway. [1]" in answer
        assert "No model is configured" in answer
        assert f"[1] {house / 'rules.md'}, lines 1-3" in answer
        assert "attic" not in answer

    async with ModelEndpoint(["In the cellar [1]."]) as endpoint:
        models = {"little": {"base_url": endpoint.url, "model": "little"}}
        async with agents.run(LIBRARIAN, models=models) as run:
            answer = (await run.ask("librarian", "Where may I put my bike?", timeout=PATIENCE_S)).text
        assert answer.startswith("In the cellar [1].\n")
        assert f"[1] {house / 'rules.md'}, lines 1-3" in answer
        assert "never in the hallway" in str(endpoint.asked[0]["messages"])
