"""Writes samplers and modes into docs/samplers.md and README.md, from the one table of each.

python docs/make_tables.py
"""

from __future__ import annotations

import re
from pathlib import Path

from score_sde.cli import MODES
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


def modes() -> str:
    """A row a mode, with the page that tells more."""
    rows = ["| mode | what it does | |", "|---|---|---|"]
    for name, mode in MODES.items():
        page = f"[{mode.page}](docs/{mode.page}.md)" if mode.page else ""
        rows.append(f"| `{name}` | {mode.about} | {page} |")
    return "\n".join(rows) + "\n"


def filled(text: str, mark: str, block: str) -> str:
    """The text with what stands between a mark and the end replaced."""
    marked = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    found, count = re.subn(marked, lambda m: m.group(1) + block + m.group(2), text, flags=re.S)
    if count != 1:
        raise SystemExit(f"there must be one pair of marks, <!-- {mark} --> and <!-- end -->.")
    return found


README = ROOT / "README.md"
BLOCKS = (
    (ROOT / "docs" / "samplers.md", "samplers", samplers_table),
    (README, "samplers", names),
    (README, "modes", modes),
)

if __name__ == "__main__":
    for path, mark, make in BLOCKS:
        path.write_text(filled(path.read_text(), mark, make()))
        print(f"wrote {path}")
