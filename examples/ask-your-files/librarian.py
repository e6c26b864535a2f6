"""A librarian has many readers take in a folder, and answers questions about it with citations."""

from __future__ import annotations

import re
from typing import Any

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.knowledge import Knowledge, Passage, cited, documents_in

SYSTEM = (
    "Answer from the numbered passages alone, in a few sentences. Behind each statement give the number of its "
    "passage, as [1]. Where they don't answer the question, say so."
)

knowledge = Knowledge()


@agent("reader", blocking="thread", max_in_flight=4, timeout=300)
def reader(message: Message, ctx: Context) -> dict[str, Any]:
    """Takes in one file. It may run twice, after a crash: what is stored and unchanged is skipped."""
    added = knowledge.add(message.text)
    return {"passages": added.chunks, "skipped": [str(problem) for problem in added.problems]}


@agent("librarian")
async def librarian(message: Message, ctx: Context) -> str:
    """`read FOLDER`, or a question."""
    if message.text.startswith("read "):
        files = await ctx.step("list the folder", in_step, message.text.removeprefix("read ").strip())
        read = await ctx.map("reader", files, timeout=300, limit=8)
        skipped = [f"\nskipped: {line}" for each in read for line in each["skipped"]]
        return f"{len(files)} files, {sum(each['passages'] for each in read)} new passages{''.join(skipped)}"
    found = [Passage(*each) for each in await ctx.step("search", look_up, message.text)]
    if not found:
        return "I know nothing yet: write `read FOLDER`."
    if ctx.settings.models:
        question = f"{cited(found)}\n\nQuestion: {message.text}"
        answer = (await ctx.llm.chat(question, system=SYSTEM)).text
    else:
        words = await ctx.step("pick sentences", sentences, message.text, found)
        answer = f"{words}\n(No model is configured: these are the documents' own words.)"
    sources = "".join(f"\n[{number}] {passage.citation}" for number, passage in enumerate(found, 1))
    return f"{answer}\n{sources}"


def in_step(folder: str) -> list[str]:
    """The files of *folder*; what the store has of files that are gone is forgotten."""
    files = [str(path) for path in documents_in(folder)[0]]
    knowledge.keep(folder, files)
    return files


def look_up(question: str) -> list[list[Any]]:
    """The passages that fit, as JSON has them."""
    return [list(passage) for passage in knowledge.search(question)]


def sentences(question: str, passages: list[Passage], most: int = 3) -> str:
    """The sentences of *passages* that are nearest to the question, in the passages' order."""
    asked = knowledge.embed(question)
    all_ = [
        (number, sentence.strip())
        for number, passage in enumerate(passages, 1)
        for sentence in re.split(r"(?<=[.!?])\s+|\n{2,}", passage.text)
        if len(sentence.split()) > 3
    ]
    near = sorted(range(len(all_)), key=lambda at: -float(knowledge.embed(all_[at][1]) @ asked))[:most]
    return "\n".join(f"{all_[at][1]} [{all_[at][0]}]" for at in sorted(near))
