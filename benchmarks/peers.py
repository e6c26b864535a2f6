"""The peers' own virtual environment: they pin other versions of the clients than the project has.

`python benchmarks/peers.py` makes it; the benchmarks do so by themselves.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["REQUIREMENTS", "ensure"]

#: What design.md measured against, as released in autumn 2026.
REQUIREMENTS = (
    "faust-streaming==0.15.3",
    "aiokafka[lz4]",
    "quixstreams==3.28.*",
    "faststream[confluent]==0.7.*",
    "fastavro>=1.10",
    "uvloop>=0.20",
    "orjson>=3.10",
)

FOLDER = Path(__file__).resolve().parent.parent / ".venv-peers"


def ensure() -> Path:
    """The environment's Python, after making it if it is not there or has other requirements."""
    python = FOLDER / "bin" / "python"
    stamp = FOLDER / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print("installing the peers into .venv-peers (once; a minute)", file=sys.stderr)
    venv.create(FOLDER, with_pip=True, clear=True)
    installer = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*installer, *REQUIREMENTS], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    print(ensure())
