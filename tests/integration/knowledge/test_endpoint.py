"""Embeddings from an endpoint: a real HTTP server that is busy at first, refuses, and answers with something else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmagentos.agents.knowledge import Knowledge
from llmagentos.streams.errors import KnowledgeError
from llmagentos.streams.settings import Settings

WORDS = ("cat", "dog", "fish")


class Endpoint(ThreadingHTTPServer):
    """Its vectors count a few words; `answers` go first: a status and a body each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, self.headers.get("authorization", ""), question))
        status, body = self.server.answers.pop(0) if self.server.answers else (200, self.vectors(question))
        self.send_response(status)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def vectors(self, question: dict[str, Any]) -> bytes:
        data = [
            {"index": at, "embedding": [text.lower().count(word) + 0.01 for word in WORDS]}
            for at, text in enumerate(question["input"])
        ]
        return json.dumps({"data": data[::-1]}).encode()  # in any order, says the protocol: by index

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_endpoint_is_asked_again_and_its_nonsense_is_told(
    bare_environment: None, endpoint: Endpoint, tmp_path: Path
) -> None:
    settings = Settings.load(
        home=tmp_path, embeddings_url=endpoint.url, embeddings_model="little", embeddings_key="secret"
    )
    pets = tmp_path / "pets"
    pets.mkdir()
    for word in WORDS:
        (pets / f"{word}.txt").write_text(f"The {word} sleeps.\n")
    endpoint.answers = [(429, b"busy"), (503, b"starting")]
    with Knowledge(settings=settings) as knowledge:
        assert knowledge.path == tmp_path / "knowledge.db"
        assert knowledge.add(pets).new == 3
        assert [Path(each.source).name for each in knowledge.search("dog", 1, by="meaning")] == ["dog.txt"]
        path, key, question = endpoint.asked[0]
        assert (path, key, question["model"], len(question["input"])) == (
            "/v1/embeddings",
            "Bearer secret",
            "little",
            3,
        )

        for answer, said in (
            ((401, b"no such key"), "gives no vectors: 401: no such key"),
            ((200, b"<html>"), "answers with no embeddings"),
            ((200, b'{"data": []}'), "gave vectors of shape"),
        ):
            endpoint.answers = [answer]
            with pytest.raises(KnowledgeError, match=said):
                knowledge.search("cat")
        assert len(knowledge.documents()) == 3
        # By words alone, no endpoint is needed.
        asked = len(endpoint.asked)
        assert knowledge.search("fish", by="words")[0].text == "The fish sleeps."
        assert len(endpoint.asked) == asked
    with pytest.raises(KnowledgeError, match="no model is named"):
        Knowledge(settings=settings.model_copy(update={"embeddings_model": ""}))
