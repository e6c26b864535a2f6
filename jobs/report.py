"""The report of the job `analytics`: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmagentos.jobs import plots
from llmagentos.jobs.runs import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["duration", "render", "size"]

#: Rows of a table that the page shows; the Parquet files have all.
SHOWN = 15


def render(tables: dict[str, pd.DataFrame], run: Run) -> str:
    """The page, from the tables of :func:`llmagentos.jobs.analytics.tables` and the run's record."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _number, "duration": duration, "size": size, "time": _time, "share": _share, "usd": _usd}
    template = page.from_string(files("llmagentos.jobs").joinpath("analytics.html").read_text(encoding="utf-8"))

    def plot(draw: Callable[[pd.DataFrame], str], name: str) -> Any:
        return Markup(draw(tables[name])) if len(tables[name]) else ""

    return template.render(
        run=run,
        totals=run.summary,
        tables={name: _rows(table.head(SHOWN)) for name, table in tables.items() if name not in ("totals", "curve")},
        lengths={name: len(table) for name, table in tables.items()},
        agents=_agents(tables),
        sums=_sums(tables),
        plots={
            "traffic": plot(plots.traffic, "traffic"),
            "agents": plot(plots.messages_by_agent, "traffic"),
            "latency": plot(plots.latency_curve, "curve"),
            "tokens": plot(plots.tokens_by_tenant, "cost"),
            "dead": plot(plots.dead_letters, "dead"),
        },
        shown=SHOWN,
    )


def duration(ms: Any) -> str:
    """Milliseconds for people: `3 ms`, `1.25 s`, `4 min 10 s`, `2 h 5 min`."""
    if ms is None or ms != ms:  # NaN
        return "-"
    if abs(ms) < 1000:
        return f"{ms:.3g} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def size(count: Any) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:,.0f}"


def _share(value: Any) -> str:
    return f"{value:.1%}"


def _usd(value: Any) -> str:
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def _time(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _agents(tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """By agent, most first: messages, bytes, tenants, and how many of each type."""
    traffic = tables["traffic"]
    if not len(traffic):
        return []
    rows: list[dict[str, Any]] = []
    for agent, part in traffic.groupby("agent"):
        types: Any = part.groupby("type")["messages"].sum()
        types = types.sort_values(ascending=False)
        rows.append(
            {
                "agent": agent,
                "messages": part["messages"].sum(),
                "bytes": part["bytes"].sum(),
                "tenants": part["tenant"].nunique(),
                "types": ", ".join(f"{count:,} {name}" for name, count in types.items()),
            }
        )
    return sorted(rows, key=lambda row: -row["messages"])


def _sums(tables: dict[str, pd.DataFrame]) -> dict[str, float]:
    def total(table: str, column: str) -> float:
        return float(tables[table][column].sum()) if len(tables[table]) else 0.0

    return {
        "answered": total("latency", "answered"),
        "unanswered": total("latency", "unanswered"),
        "errors": total("errors", "errors"),
        "dead": total("dead", "letters"),
        "tokens": total("cost", "tokens_in") + total("cost", "tokens_out"),
        "cost": total("cost", "cost"),
        "undecodable": total("undecodable", "records"),
    }
