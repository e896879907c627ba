"""Small models that ship with the package: `load("fashion")`, `--workdir pretrained/emoji`.

score_sde/pretrained/<name>/
    config.json, model.safetensors    as `--mode export --dtype bfloat16` (or int8) wrote them
    card.json                         the commands that made it, its seed, and its figures

`fashion` draws garments, `emoji` what a prompt says, and `sr_emoji` enlarges that.

They are read from the package and never written to: what is made of one goes to
pretrained/<name>/ where you are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from score_sde.runs.directory import RunDirectory

FOLDER = Path(__file__).parents[1] / "pretrained"
CONFIGS = {
    "fashion": "042123f969969e6debcc24efe538c0ab5dfa56270606891aa04e9af785d47ef3",
    "emoji": "3d391a3a206f74c4c5987b478ff8d659696672eec29daadeaf8fe7aee3042d59",
    "sr_emoji": "a751a8dfb524c212ea035ff349818abb84e11b1f6549c71f612f4b85b6c066d3",
}
"""Of each model, the SHA-256 of its config.json: what the names in it may run is known to us."""


def find(path: str | Path) -> Path:
    """The folder of a run: ``path``, or that of a model that ships and is called so."""
    given = Path(path)
    shipped = given.parts in ((given.name,), ("pretrained", given.name)) and given.name in CONFIGS
    return FOLDER / given.name if shipped and not RunDirectory(given).config.is_file() else given


def home(path: Path) -> Path:
    """Where what is made of a run is written: in it, but for the models that ship."""
    return Path("pretrained") / path.name if path.parent == FOLDER else path


def is_ours(config: Path) -> bool:
    """Whether a config.json is that of a model that ships, as it was shipped."""
    return config.parent.parent == FOLDER and hashlib.sha256(
        config.read_bytes()
    ).hexdigest() == CONFIGS.get(config.parent.name)


def card(path: Path) -> dict[str, Any]:
    """How a model that ships was made, and its figures; {} for other runs."""
    return json.loads((path / "card.json").read_text()) if path.parent == FOLDER else {}
