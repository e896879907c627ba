"""Settings for data, with reasons, and a config file that trains: `--mode suggest`."""

from __future__ import annotations

import os
import pprint
import re
from pathlib import Path
from typing import Any

from score_sde import build
from score_sde.diagnosis.suggest import Advice, suggest
from score_sde.runs.directory import RunError
from score_sde.runs.outputs import check_place, write_beside

TEMPLATE = '''"""What `--mode suggest --data {data}` proposes.

{reasons}
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The settings."""
    return ConfigDict(
        {settings}
    )
'''


def suggest_to_file(data: str, split: str = "train", out: str | Path | None = None) -> Advice:
    """Print what `suggest` says of a set, folder or file, and write a config that trains on it.

    out: the config's file, <data>_suggested.py in the current folder when None; never replaced.
    """
    stem = re.sub(r"\W+", "_", Path(data).stem).strip("_") or "data"
    path = Path(out) if out else Path(f"{stem}_suggested.py")
    if os.path.lexists(path):
        raise RunError(f"{path} is there already: give another file as --out.")
    check_place(path.parent)
    advice = suggest(build.build_data({"data": {"name": data}}, split))
    print(advice)
    path = write_beside(path, config_text(advice, data))
    print(f"\nwrote {path}; train with --config {path}")
    return advice


def config_text(advice: Advice, data: str) -> str:
    """The config as a file, with the reasons in its docstring."""
    settings: dict[str, Any] = advice.config()
    settings["data"]["name"] = data
    shown = pprint.pformat(settings, sort_dicts=False, width=80).replace("\n", "\n        ")
    reasons = "\n".join(f"{name}: {choice.value}; {choice.reason}"
                        for name, choice in advice.choices())  # fmt: skip
    return TEMPLATE.format(data=_harmless(data), reasons=_harmless(reasons), settings=shown)


def _harmless(text: str) -> str:
    """A text that a docstring can hold: names of files and classes may be anything."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return plain.replace("\\", "/").replace('"', "'")
