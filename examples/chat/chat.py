"""A chat with two tools and a memory: see README.md."""

from datetime import UTC, datetime

from simpleeval import simple_eval

from llmagentos.agents import Context, Message, agent
from llmagentos.agents.tools import tool


@tool()
def clock() -> str:
    """The date and time now, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M}"


@tool()
def calculate(expression: str) -> str:
    """The value of an arithmetic expression, for example `2 * (3 + 4)`."""
    return str(simple_eval(expression))


@agent("chat", memory=dict, tools=[clock, calculate])
async def chat(message: Message, ctx: Context) -> str:
    said = [*ctx.memory.get("said", []), {"role": "user", "content": message.text}]
    reply = await ctx.llm.chat(said, system="Be brief.", tools=ctx.tools.values())
    ctx.memory["said"] = [*said, {"role": "assistant", "content": reply.text}]
    return reply.text
