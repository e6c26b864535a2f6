"""What a reader has been shown of one answer, over all runs of the handler that gives it.

A handler whose worker died runs again, and emits its text again: perhaps in other pieces, perhaps another text. Each
token says which run emitted it and at which place of that run's text (see `Context.emit`), so that what was shown is
not shown twice, and that a text which differs is told from one that goes on.
"""

from __future__ import annotations

from typing import NamedTuple

from llmagentos.streams.message import TEXT, Message

__all__ = ["Piece", "Shown"]


class Piece(NamedTuple):
    """What is to be shown next.

    Attributes:
        text: goes behind what was shown; where *anew*, in its place.
        anew: a later run says something else than an earlier one: what was shown does not hold.
    """

    text: str
    anew: bool = False


class Shown:
    """How far one answer was shown.

    Attributes:
        text: what was shown and holds, from *begins* on.
        begins: the place where the reader came in; what lies before was somebody else's to show.
    """

    __slots__ = ("_partials", "_partials_shown", "_run", "_run_at", "begins", "text")

    def __init__(self) -> None:
        self.text = ""
        self.begins = -1
        self._run = ""
        self._run_at = 0  # how far the run that is followed has come
        self._partials = 0  # of that run
        self._partials_shown = 0

    def take(self, token: Message) -> Piece | None:
        """What to show of *token*; None: nothing, as it was shown, or is of a run that is over."""
        run, at = _place(token, self._run_at)
        if not self._follows(run, at):
            return None
        chunk = token.text
        end = at + len(chunk)
        if self.begins < 0:
            self.begins = at
        known = self.text[max(0, at - self.begins) : max(0, end - self.begins)]
        self._run_at = end
        if end <= self.begins:
            return None
        new = chunk[max(0, self.begins - at) :]
        if known == new[: len(known)]:
            rest = new[len(known) :]
            self.text += rest
            return Piece(rest) if rest else None
        self.text = self.text[: max(0, at - self.begins)] + new
        return Piece(self.text, anew=True)

    def partial(self, token: Message) -> bool:
        """Whether *token*, a partial result that is no text, is to be shown: by its number among those of its run."""
        run, at = _place(token, self._run_at)
        if not self._follows(run, at):
            return False
        self._partials += 1
        if self._partials <= self._partials_shown:
            return False
        self._partials_shown = self._partials
        return True

    def rest(self, answer: str) -> str:
        """What to show of the whole *answer* behind the tokens: nothing, where they were the answer."""
        if self.begins > 0 or not self.text:
            return "" if self.text else answer
        if answer.startswith(self.text):
            return answer[len(self.text) :]
        return "" if self.text.rstrip().endswith(answer.rstrip()) else f"\n\n{answer}"

    def _follows(self, run: str, at: int) -> bool:
        """Whether what *run* says at that place counts; begins to follow a later run, or one that began anew."""
        if run < self._run:
            return False
        if run > self._run or at < self._run_at:
            self._run, self._run_at, self._partials = run, at, 0
        return True


def _place(token: Message, expected: int) -> tuple[str, int]:
    attributes = token.attributes
    at = attributes.get("at", "")
    return attributes.get("run", ""), int(at) if at.isdecimal() else expected  # of one that another program wrote


def is_text(message: Message) -> bool:
    """Whether its body is text."""
    return message.content_type == TEXT
