"""The report's plots, as SVG that takes its colours from the page: readable in the dark and in the light."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["dead_letters", "latency_curve", "messages_by_agent", "tokens_by_tenant", "traffic"]

#: Drawn in these, and replaced by the page's variables of the same order; no plot uses such colours otherwise.
_INK, _MUTED, _LINES = "#010101", "#010102", "#010103"
_SERIES = [f"#0201{number:02x}" for number in range(8)]
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINES: "var(--lines)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, 1)
}
#: The last colour is for all the others together.
_MOST = len(_SERIES) - 1
_WIDE, _HALF = 10.4, 5.1  # inches at 72 points: the page's column, and half of it

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # an agent may be called $x$
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _LINES,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINES,
    "grid.linewidth": 0.6,
    "xtick.color": _LINES,
    "ytick.color": _LINES,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}


def traffic(table: pd.DataFrame) -> str:
    """Messages an hour, by agent, stacked; from the table of that name."""
    import numpy as np
    import pandas as pd

    by_hour = table.pivot_table(index="hour", columns="agent", values="messages", aggfunc="sum", fill_value=0)
    by_hour = by_hour.asfreq("h", fill_value=0)
    names, columns = _largest(by_hour.sum())
    # One bar at most every two points: hours are added up into longer spans where there are more.
    every = -(-len(by_hour) // 300)
    if every > 1:
        by_hour = by_hour.resample(f"{every}h").sum()

    def draw(axes: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        middle = np.asarray(by_hour.index + pd.Timedelta(minutes=30 * every))
        below = np.zeros(len(by_hour))
        for color, name, members in zip(_colors(names), names, columns, strict=True):
            height = by_hour[members].sum(axis=1).to_numpy()
            axes.bar(middle, height, width=every / 24 * 0.92, bottom=below, color=color, label=name, linewidth=0)
            below += height
        span = pd.Timedelta(minutes=30 * max(12 - len(by_hour), 0) + 60 * every)
        axes.set_xlim(middle[0] - span, middle[-1] + span)
        locator = AutoDateLocator(minticks=3, maxticks=9)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
        axes.set_ylabel("messages an hour" if every == 1 else f"messages in {every} hours")
        axes.grid(axis="x", visible=False)
        _thousands(axes.yaxis)
        _legend(axes, len(names))

    return _svg(draw, _WIDE, 2.9, "traffic")


def messages_by_agent(table: pd.DataFrame) -> str:
    """Messages of each agent, by type, stacked sideways; from the table `traffic`."""
    import numpy as np

    by_type = table.pivot_table(index="agent", columns="type", values="messages", aggfunc="sum", fill_value=0)
    by_type = by_type.loc[by_type.sum(axis=1).sort_values(ascending=False).index[:12]][::-1]
    types = list(by_type.sum().sort_values(ascending=False).index)

    def draw(axes: Axes) -> None:
        left = np.zeros(len(by_type))
        for color, name in zip(_colors(types), types, strict=True):
            width = by_type[name].to_numpy()
            axes.barh(list(by_type.index), width, 0.62, left=left, color=color, label=name, linewidth=0)
            left += width
        axes.set_xlabel("messages")
        _sideways(axes)
        _legend(axes, len(types))

    return _svg(draw, _HALF, _height(len(by_type)), "agents")


def latency_curve(table: pd.DataFrame) -> str:
    """How many of an agent's answers came within which time; from the table `curve`."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = table.head(_MOST).to_dict("records")

    def draw(axes: Axes) -> None:
        for color, row in zip(_SERIES, rows, strict=False):
            # Log scale: what took less than the clock's millisecond is drawn at half of one.
            axes.plot(
                [max(float(ms), 0.5) for ms in row["ms"]],
                list(row["share"]),
                color=color,
                label=row["agent"],
                linewidth=1.8,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: _duration(ms)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("from question to answer")
        axes.set_ylabel("answers")
        _legend(axes, len(rows))

    return _svg(draw, _HALF, 3.2, "latency")


def tokens_by_tenant(table: pd.DataFrame) -> str:
    """Tokens in and out of each tenant; from the table `cost`."""
    tenants = table.groupby("tenant")[["tokens_in", "tokens_out"]].sum()
    tenants = tenants.loc[tenants.sum(axis=1).sort_values(ascending=False).index[:12]][::-1]

    def draw(axes: Axes) -> None:
        names = list(tenants.index)
        axes.barh(names, tenants["tokens_in"], 0.62, color=_SERIES[0], label="in", linewidth=0)
        axes.barh(
            names, tenants["tokens_out"], 0.62, left=tenants["tokens_in"], color=_SERIES[1], label="out", linewidth=0
        )
        axes.set_xlabel("tokens")
        _sideways(axes)
        _legend(axes, 2)

    return _svg(draw, _HALF, _height(len(tenants)), "tokens")


def dead_letters(table: pd.DataFrame) -> str:
    """Dead letters of each agent, by cause; from the table `dead`."""
    import numpy as np

    by_cause = table.pivot_table(index="agent", columns="cause", values="letters", aggfunc="sum", fill_value=0)
    by_cause = by_cause.loc[by_cause.sum(axis=1).sort_values(ascending=False).index[:12]][::-1]
    causes = list(by_cause.sum().sort_values(ascending=False).index)

    def draw(axes: Axes) -> None:
        left = np.zeros(len(by_cause))
        for color, name in zip(_colors(causes), causes, strict=True):
            width = by_cause[name].to_numpy()
            axes.barh(list(by_cause.index), width, 0.62, left=left, color=color, label=name, linewidth=0)
            left += width
        axes.set_xlabel("dead letters")
        _sideways(axes)
        _legend(axes, len(causes))

    return _svg(draw, _HALF, _height(len(by_cause)), "dead")


def _svg(draw: Any, width: float, height: float, name: str) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the font, matplotlib needn't
        figure: Figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids would clash with those of the page's other plots.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return re.sub(r'font: (\S+) [^;"]*', r"font: \1 var(--font)", svg)


def _largest(sums: Any) -> tuple[list[str], list[list[str]]]:
    """The largest, each alone, and all the others together: (names, members)."""
    names = [str(name) for name in sums.sort_values(ascending=False).index]
    if len(names) <= _MOST + 1:
        return names, [[name] for name in names]
    return [*names[:_MOST], "others"], [*([name] for name in names[:_MOST]), names[_MOST:]]


def _colors(names: Sequence[str]) -> Iterable[str]:
    return [_SERIES[min(index, _MOST)] for index in range(len(names))]


def _height(bars: int) -> float:
    return max(1.35 + 0.34 * bars, 3.2)


def _sideways(axes: Axes) -> None:
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.margins(y=0.6 / max(len(axes.get_yticks()), 1))
    axes.xaxis.set_major_locator(_whole())
    _thousands(axes.xaxis)


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=min(entries, 4 if axes.get_figure() is None else 8),
        handlelength=0.8,
        handleheight=0.8,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _duration(ms: float) -> str:
    if ms < 1000:
        return f"{ms:g} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"
