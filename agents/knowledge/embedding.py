"""From text to a vector: by the local model, or by an endpoint that speaks OpenAI's embeddings protocol."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from llmagentos.streams.errors import KnowledgeError

if TYPE_CHECKING:
    import httpx
    from numpy.typing import NDArray

    from llmagentos.streams.settings import Settings

__all__ = ["Embedder", "Endpoint", "embedder_of"]

#: Texts a request: OpenAI takes 2,048 and 300,000 tokens in all, which are 1,200 chunks of the largest size.
BATCH: Final = 128
#: Seconds for one request: a loaded model on a CPU takes some for a batch.
TIMEOUT_S: Final = 60.0
#: How often a request is tried again that may go well then, and the longest wait that a server may ask for, in seconds.
RETRIES: Final = 4
WAIT_MAX_S: Final = 30.0


class Embedder(Protocol):
    """What makes vectors of texts.

    Attributes:
        name: of the model: a store holds the vectors of one.
    """

    @property
    def name(self) -> str: ...

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """One vector of length 1 for each of *texts*, in their order.

        Raises:
            KnowledgeError: it can't.
        """
        ...


def embedder_of(settings: Settings) -> Embedder:
    """The one that the settings name."""
    if settings.embeddings_url:
        return Endpoint(settings.embeddings_url, settings.embeddings_model, settings.embeddings_key.get_secret_value())
    from llmagentos.agents.knowledge.minilm import MiniLM

    return MiniLM(settings.cache)


class Endpoint:
    """`POST {url}/embeddings`.

    Args:
        url: up to and with the version: `https://api.openai.com/v1`.
        model: as the endpoint names it.
        key: sent as a bearer token; empty: none.
    """

    def __init__(self, url: str, model: str, key: str = "") -> None:
        if not model:
            raise KnowledgeError(
                f"no model is named for the embeddings of {url}", fix="set LLMAGENTOS_EMBEDDINGS_MODEL"
            )
        self.name = model
        self._url = url.rstrip("/") + "/embeddings"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """See :class:`Embedder`. A busy or broken endpoint is tried again, as long as it asks for.

        Raises:
            KnowledgeError: it is out of reach, refuses, or answers with something else.
        """
        import httpx

        with httpx.Client(headers=self._headers, timeout=TIMEOUT_S) as client:
            parts = [self._batch(client, texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        vectors = np.concatenate(parts)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _batch(self, client: httpx.Client, texts: list[str]) -> NDArray[np.float32]:
        import httpx

        said = ""
        for attempt in range(RETRIES + 1):
            wait_s = 0.5 * 2**attempt
            try:
                response = client.post(self._url, json={"model": self.name, "input": texts, "encoding_format": "float"})
            except httpx.HTTPError as error:
                said = f"{error or type(error).__name__}"
            else:
                if response.is_success:
                    return self._vectors(response, len(texts))
                said = f"{response.status_code}: {response.text[:300]}"
                if response.status_code != 429 and response.status_code < 500:
                    break
                asked = response.headers.get("retry-after", "")
                wait_s = min(float(asked), WAIT_MAX_S) if asked.isdigit() else wait_s
            if attempt < RETRIES:
                time.sleep(wait_s)
        raise KnowledgeError(
            f"the embeddings endpoint {self._url} gives no vectors: {said}",
            fix="check LLMAGENTOS_EMBEDDINGS_URL, _MODEL and _KEY, and add again: what is stored already is skipped",
            kept="all documents whose vectors came before",
        )

    def _vectors(self, response: httpx.Response, texts: int) -> NDArray[np.float32]:
        try:
            data = sorted(response.json()["data"], key=lambda each: each["index"])
            vectors = np.array([each["embedding"] for each in data], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise KnowledgeError(
                f"the embeddings endpoint {self._url} answers with no embeddings ({error!r}): {response.text[:200]}",
                fix="is it an endpoint of OpenAI's protocol, for a model of embeddings?",
            ) from None
        if vectors.ndim != 2 or len(vectors) != texts:
            raise KnowledgeError(
                f"the embeddings endpoint {self._url} gave vectors of shape {vectors.shape} for {texts} texts",
                fix="is it an endpoint of OpenAI's protocol, for a model of embeddings?",
            )
        return vectors
