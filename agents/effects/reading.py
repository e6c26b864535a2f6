"""Follows what a handler does, by its text, from its first line into every function of the file that it calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmagentos.agents.effects.calls import Did, Node
from llmagentos.agents.effects.ends import Ends
from llmagentos.agents.effects.order import Order
from llmagentos.agents.effects.scopes import Function
from llmagentos.agents.effects.state import State
from llmagentos.agents.effects.values import CTX, Frame, Func, Module, Value

__all__ = ["Finding", "Handler", "Reader"]

#: How deep calls are followed: deeper ones pass a function to itself, wrapped once more each time.
DEEPEST_CALL = 25

#: In how many different ways one function is followed before what it is given, but for the context, is left open: one
#: that calls itself with parts of what it was given would be followed for ever. Helpers have some ten callers.
MOST_WAYS = 40


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that a rerun of a handler would do otherwise, or once more.

    Attributes:
        line, column: where, both counted from one.
        last_line: of the expression or statement.
        what: what is done there.
        advice: what to write in its place.
        agent: whose handler comes by.
        via: the functions between the handler and the place.
    """

    line: int
    column: int
    code: str
    what: str
    advice: str
    last_line: int
    agent: str = ""
    via: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Handler:
    """An agent's handler: the function, which of its parameters is the context, and where it runs."""

    agent: str
    func: Func
    blocking: str = ""

    @property
    def first(self) -> dict[str, Value]:
        """The values of its parameters."""
        args = self.func.node.args
        names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
        at = 1 if self.func.receiver is None else 2
        given: dict[str, Value] = {names[0]: self.func.receiver} if self.func.receiver is not None else {}
        return given | ({names[at]: CTX} if len(names) > at else {})


class Reader:
    """Reads the handlers of one file, and keeps what it finds, each place once."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.found: dict[tuple[int, int, str], Finding] = {}
        self.handler: Handler
        self._did: dict[object, Did] = {}
        self._ways: Counter[Function] = Counter()

    def read(self, handler: Handler) -> None:
        """Follow *handler*."""
        self.handler = handler
        self.run(handler.func, handler.first, (), cleanup=False)

    def run(self, func: Func, given: dict[str, Value], via: tuple[str, ...], *, cleanup: bool) -> Did:
        """Follow one call of a function of the file."""
        if self._ways[func.node] >= MOST_WAYS:
            given = {name: value for name, value in given.items() if value == CTX}
        key = (func.node, func.frame, frozenset(given.items()), cleanup, self.handler.blocking)
        if key in self._did:
            return self._did[key]
        if len(via) > DEEPEST_CALL or self._ways[func.node] >= 2 * MOST_WAYS:
            return Did()
        self._ways[func.node] += 1
        self._did[key] = Did()  # for calls of itself
        frame = Frame(self.module.scopes[func.node], func.frame, given)
        body = _Body(self, func.node, frame, via, cleanup=cleanup)
        try:
            done = self._did[key] = body.read()
        except RecursionError:  # calls of long expressions within each other: what is deeper is left out
            done = Did()
        return done

    def report(self, node: Node, code: str, what: str, advice: str, *, via: tuple[str, ...], ctx: str | None) -> None:
        """Note a finding, unless the place has one of its code.

        Args:
            ctx: what the context is called there; None: as in the handler.
        """
        handler = self.handler
        if handler.blocking == "process" and "{ctx}." in advice and "{ctx}.publish" not in advice:
            advice = "a handler with blocking='process' has no steps: use blocking='thread', or ask an agent that has"
        named = next((name for name, value in handler.first.items() if value == CTX), "ctx")
        advice = advice.replace("{await}", "" if handler.blocking else "await ").replace("{ctx}", ctx or named)
        place = (node.lineno, node.col_offset + 1, code)
        if place not in self.found:
            last = node.end_lineno or node.lineno
            self.found[place] = Finding(*place, what, advice, last, handler.agent, via)


class _Body(State, Ends, Order):
    """One run of one function, seen from all sides."""
