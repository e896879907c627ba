"""Writes the samplers into docs/samplers.md and README.md, from the one table of them.

python docs/make_tables.py
"""

from __future__ import annotations

import re
from pathlib import Path

from score_sde.sampling.catalogue import list_samplers, samplers_table

ROOT = Path(__file__).parent.parent


def names() -> str:
    """All names, the stochastic ones first."""
    rows = list_samplers()
    kinds = {True: "with noise: ", False: "along the probability flow: "}
    lines = [
        kind + ", ".join(f"`{row['name']}`" for row in rows if row["stochastic"] == stochastic)
        for stochastic, kind in kinds.items()
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def filled(text: str, block: str) -> str:
    """The text with what stands between its two marks replaced."""
    marked = r"(<!-- samplers -->\n).*?(<!-- end -->)"
    found, count = re.subn(marked, lambda m: m.group(1) + block + m.group(2), text, flags=re.S)
    if count != 1:
        raise SystemExit("there must be one pair of marks, <!-- samplers --> and <!-- end -->.")
    return found


BLOCKS = {ROOT / "docs" / "samplers.md": samplers_table, ROOT / "README.md": names}

if __name__ == "__main__":
    for path, make in BLOCKS.items():
        path.write_text(filled(path.read_text(), make()))
        print(f"wrote {path}")
