"""Plain handlers at the top level of a module, where a new process finds them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from llmagentos.agents import Message, agent


class Odd(Exception):
    """Can be pickled, and not made anew from it."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@agent("worker", blocking="process")
def work(message: Message, ctx: Any) -> Any:
    """Does what the message says."""
    task, _, rest = message.text.partition(" ")
    match task:
        case "pid":
            return os.getpid()
        case "double":
            ctx.tell("other", rest, conversation="side")
            ctx.publish("topic", {"n": 1}, key="k")
            ctx.reply(rest * 2)
            return None
        case "told":
            return f"{ctx.agent} {ctx.conversation} {ctx.attempt} {ctx.tenant} {ctx.deadline}"
        case "raise":
            raise ValueError(rest)
        case "odd":
            raise Odd(1, 2)
        case "lambda":
            return lambda: None
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "ask":
            return ctx.ask("other", rest)
        case "hang":
            Path(rest).write_text(str(os.getpid()))
            time.sleep(600)
    raise AssertionError(task)
