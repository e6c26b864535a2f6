"""Knowledge: documents read, cut into passages, embedded, and found again with where they stand."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmagentos.streams.errors import KnowledgeError

if TYPE_CHECKING:
    from llmagentos.agents.knowledge.embedding import Embedder
    from llmagentos.agents.knowledge.library import Added, Knowledge, Problem, documents_in
    from llmagentos.agents.knowledge.store import Passage, Stored
    from llmagentos.agents.knowledge.tool import cited, knowledge_tool

__all__ = ["Added", "Embedder", "Knowledge", "Passage", "Problem", "Stored", "cited", "documents_in", "knowledge_tool"]

#: Imported when first asked for: they bring numpy and the model's runtime.
_LATER = {
    "Added": "library",
    "Embedder": "embedding",
    "Knowledge": "library",
    "Passage": "store",
    "Problem": "library",
    "Stored": "store",
    "cited": "tool",
    "documents_in": "library",
    "knowledge_tool": "tool",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"llmagentos.agents.knowledge.{_LATER[name]}")
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return getattr(module, name)


def missing(error: ImportError) -> KnowledgeError:
    """For a package of the extra that is not installed."""
    return KnowledgeError(f"knowledge needs {error.name}", fix="pip install 'llmagentos[knowledge]'")
