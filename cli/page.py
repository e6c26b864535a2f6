"""A conversation's timeline as one HTML page that needs nothing else: no script, no font, nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from llmagentos.cli.timeline import Row, rows, summary
from llmagentos.streams.invocations import Invocation

__all__ = ["page"]

#: Characters of a value that can be unfolded, where not all is to be shown: some pages; there may be thousands of them.
UNFOLDED = 10_000

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #6b7686; --ground: #ffffff; --rule: #e4e8ee; --wash: #f5f7fa;
  --good: #2f855a; --bad: #c53030; --wait: #b7791f; --bar: #5a7fb8; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ee; --dim: #8d99ab; --ground: #151a21; --rule: #2a323e;
  --wash: #1c232d; --good: #68c893; --bad: #f08a8a; --wait: #e3b45c; --bar: #6f96d1; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 2rem 1.5rem; background: var(--ground); color: var(--ink);
  font: 14px/1.45 system-ui, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: 1.35rem; overflow-wrap: anywhere; }
p { margin: .35rem 0 1.25rem; color: var(--dim); overflow-wrap: anywhere; }
.rows { border-top: 1px solid var(--rule); }
.row { display: grid; grid-template-columns: 6.5rem minmax(12rem, 22rem) 15rem minmax(6rem, 1fr) minmax(8rem, 2fr);
  gap: 0 1rem; padding: .3rem .25rem; border-bottom: 1px solid var(--rule); align-items: baseline; }
.row.message { background: var(--wash); }
.when, .how { color: var(--dim); font-variant-numeric: tabular-nums; }
.when { white-space: nowrap; }
.name { overflow-wrap: anywhere; border-left: 2px solid transparent; }
.message .name { font-weight: 600; }
.line { position: relative; height: .55rem; margin-top: .45rem; align-self: start;
  background: var(--wash); border-radius: 3px; }
.message .line { background: transparent; }
.line i { position: absolute; top: 0; height: 100%; min-width: 3px; border-radius: 3px; background: var(--bar); }
.text { overflow-wrap: anywhere; font-family: ui-monospace, monospace; font-size: 12.5px; }
.text pre { margin: .4rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; }
summary { cursor: pointer; }
.good .how { color: var(--good); } .bad .how { color: var(--bad); } .wait .how { color: var(--wait); }
.wait .how { font-weight: 600; }
.bad .line i { background: var(--bad); } .wait .line i { background: var(--wait); }
@media (max-width: 60rem) { .row { grid-template-columns: 6.5rem 1fr; } .line { display: none; }
  .how, .text { grid-column: 2; } }
@media print { body { max-width: none; padding: 0; } }
"""

_LOOKS = {
    "failed": "bad",
    "parked": "bad",
    "late": "bad",
    "rejected": "bad",
    "expired": "bad",
    "waits": "wait",
    "waiting": "wait",
    "open": "wait",
    "begun": "wait",
    "held": "wait",
    "approved": "good",
    "done": "good",
}


def page(conversation: str, roots: Sequence[Invocation], *, show: bool = False) -> str:
    """The page.

    Args:
        show: secrets as they are.
    """
    found = rows(roots, show=show)
    now = datetime.now().astimezone()
    first = min((row.at for row in found), default=0)
    last = max(max(row.at, row.ended) for row in found) if found else 0
    if any(_goes_on(row) for row in found):
        last = max(last, int(now.timestamp() * 1000))
    title = escape(f"Conversation {conversation}")
    began = f"{datetime.fromtimestamp(first / 1000).astimezone():%A, %d %B %Y, UTC%z}" if found else ""
    lines = "\n".join(_row(row, first, max(1, last - first), None if show else UNFOLDED) for row in found)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(summary(roots))}<br>{began}; as it was at {now:%Y-%m-%d %H:%M:%S}</p>
<div class="rows">
{lines}
</div>
</body>
</html>
"""


def _row(row: Row, first: int, whole: int, most: int | None) -> str:
    looks = " ".join(filter(None, ("row", "message" if row.kind == "message" else "step", _LOOKS.get(row.state, ""))))
    end = row.ended or (first + whole if _goes_on(row) else row.at)
    left = 100 * (row.at - first) / whole
    wide = max(0.0, min(100 - left, 100 * (end - row.at) / whole))
    when = datetime.fromtimestamp(row.at / 1000).astimezone()
    text = escape(row.text)
    if row.full != row.text:
        text = f"<details><summary>{text}</summary><pre>{escape(row.full[:most])}</pre></details>"
    return (
        f'<div class="{looks}">'
        f'<span class="when" title="{when:%Y-%m-%d}">{when:%H:%M:%S}.{row.at % 1000:03d}</span>'
        f'<span class="name" style="margin-left:{row.depth * 1.1:.1f}rem">{escape(row.name)}</span>'
        f'<span class="how">{escape(row.how)}</span>'
        f'<span class="line"><i style="left:min({left:.2f}%,100% - 3px);width:{wide:.2f}%"></i></span>'
        f'<span class="text">{text}</span></div>'
    )


def _goes_on(row: Row) -> bool:
    return not row.ended and row.state in ("waits", "waiting", "open", "begun", "held", "parked")
