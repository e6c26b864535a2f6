"""The peers' own virtual environments: they pin other versions of clients than the project has, and than each other.

`python benchmarks/peers.py` makes them; the benchmarks do so by themselves.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["REQUIREMENTS", "ensure"]

#: What design.md measured against, as released in autumn 2026, by environment.
REQUIREMENTS = {
    "peers": (
        "faust-streaming==0.15.3",
        "aiokafka[lz4]",
        "quixstreams==3.28.*",
        "faststream[confluent]==0.7.*",
        "fastavro>=1.10",
        "uvloop>=0.20",
        "orjson>=3.10",
    ),
    "dbos": ("dbos==3.4.*",),
}

ROOT = Path(__file__).resolve().parent.parent


def ensure(name: str = "peers") -> Path:
    """An environment's Python, after making it if it is not there or has other requirements."""
    folder = ROOT / f".venv-{name}"
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS[name])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing peers into .venv-{name} (once; a minute)", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    installer = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*installer, *REQUIREMENTS[name]], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    for each in REQUIREMENTS:
        print(ensure(each))
