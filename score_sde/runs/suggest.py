"""Settings for data, with reasons, and a config file that trains: `--mode suggest`."""

from __future__ import annotations

import pprint
import re
from pathlib import Path
from typing import Any

from score_sde import build
from score_sde.diagnosis.suggest import Advice, suggest
from score_sde.runs.directory import RunError

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
    advice = suggest(build.build_data({"data": {"name": data}}, split))
    print(advice)
    stem = re.sub(r"\W+", "_", Path(data).stem).strip("_") or "data"
    path = Path(out) if out else Path(f"{stem}_suggested.py")
    if path.exists():
        raise RunError(f"{path} is there already: give another file as --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_text(advice, data))
    print(f"\nwrote {path}; train with --config {path}")
    return advice


def config_text(advice: Advice, data: str) -> str:
    """The config as a file, with the reasons in its docstring."""
    settings: dict[str, Any] = advice.config()
    settings["data"]["name"] = data
    shown = pprint.pformat(settings, sort_dicts=False, width=80).replace("\n", "\n        ")
    reasons = "\n".join(f"{name}: {choice.value}; {choice.reason}"
                        for name, choice in advice.choices())  # fmt: skip
    plain = reasons.replace("\\", "/").replace('"""', "'''")
    return TEMPLATE.format(data=data.replace("\\", "/"), reasons=plain, settings=shown)
