"""Captioned emoji: 3 786 small drawings with a sentence each, to learn to draw what is asked for.

Google's emoji (Apache-2.0) as npm packs them, on white. A caption is the emoji's name in lower case
and, where there are skin tones, the tone: "woman doctor: medium skin tone". Held out as the test
split are 195 captions whose words are all seen in others: a colour of a shape, a tone of a person,
a gender of a role (`held_out`). Unicode calls two drawings "man in tuxedo", so that 3 780 captions
are distinct; the second drawing in medium-dark, whose caption is held out, is in neither split.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from score_sde.checks import cache_dir
from score_sde.data.download import member_of, npm_pack
from score_sde.data.spec import DataError
from score_sde.writing import replacing

PACKAGE = "emoji-datasource-google@16.0.0"
SIDES = (32, 64)
# Members of the package, by their names in the cache, and their SHA-256.
MEMBERS = {"emoji.json": "emoji.json"} | {f"{s}.png": f"img/google/sheets/{s}.png" for s in SIDES}
SHA256 = {
    "emoji.json": "1d602e65be88772bf8cc368ce16b855d719eeddbafe128d471b80203f494d29f",
    "32.png": "b417e9f6cd4bbc10656bbfd5e13b6e9a2545b55e6a4cf7312d75be1faaa34952",
    "64.png": "795a0c598d162c9a4aae23f2188c607b8c9bc1912cb7d84382459f8de91a3ae1",
}
TONES = {
    "1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium",
    "1F3FE": "medium-dark", "1F3FF": "dark",
}  # fmt: skip


class Emoji(NamedTuple):
    """One drawing: its code points, its caption and its place (column, row) on the sheet."""

    code: str
    caption: str
    place: tuple[int, int]


def held_out() -> dict[str, dict[str, str]]:
    """The test captions by code, of each kind: person x tone, gender x role, colour x shape."""
    return {kind: dict(pairs) for kind, pairs in _asset()["held_out"].items()}


def emoji(split: str, side: int = 32) -> tuple[np.ndarray, tuple[str, ...]]:
    """Images (N, side, side, 3) uint8 and their N captions: 3 590 for "train", 195 for "test".

    side is 32 or 64. Fetched on first use with `npm pack`, checked by SHA-256, cached.
    """
    kept_back = {code: said for kind in held_out().values() for code, said in kind.items()}
    every, said = catalogue(_member("emoji.json")), set(kept_back.values())
    if split == "test":
        chosen = [e for e in every if e.code in kept_back]
    else:
        chosen = [e for e in every if e.code not in kept_back and e.caption not in said]
    # What the package itself is does not depend on a stranger's file: its checksum is pinned.
    with Image.open(io.BytesIO(_member(f"{side}.png"))) as picture:
        sheet = picture.convert("RGBA")
    white = Image.new("RGBA", sheet.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, sheet).convert("RGB"))
    cell = side + 2
    corners = [(row * cell + 1, column * cell + 1) for column, row in (e.place for e in chosen)]
    images = np.stack([pixels[y : y + side, x : x + side] for y, x in corners])
    return images, tuple(e.caption for e in chosen)


COLOURS = ("red orange yellow green blue purple brown black white pink grey").split()
SHAPES = ("heart", "circle", "square", "diamond", "book")


def balanced_places(captions: Sequence[str]) -> list[int]:
    """Places of an epoch in which what is rare among drawings counts more often.

    The some forty coloured shapes, which teach what a colour is, count eight times; a drawing that
    no other resembles, by its caption, twice: of 3 590 more than half are the tones and genders
    of persons and hands, which are learned from each other.
    """
    stems = [_stem(caption) for caption in captions]
    alike = Counter(stems)
    counts = (
        8 if _is_shape(caption) else 2 if alike[stem] == 1 else 1
        for caption, stem in zip(captions, stems, strict=True)
    )
    return [i for i, count in enumerate(counts) for _ in range(count)]


def _stem(caption: str) -> str:
    """The caption without tones and without man, woman and person."""
    words = re.sub(r":[^:]*skin tone$", "", caption).split()
    return " ".join(word for word in words if word not in ("man", "woman", "person"))


def _is_shape(caption: str) -> bool:
    words = caption.split()
    coloured = any(colour in caption for colour in COLOURS) or "light" in caption
    plain = coloured and len(words) <= 4 and "skin tone" not in caption
    return plain and any(word in SHAPES for word in words)


def catalogue(content: bytes) -> tuple[Emoji, ...]:
    """Every emoji of the package's emoji.json, tones after the yellow one."""
    rename = _asset()["rename"]  # of names that say another colour than the drawing has
    found = []
    for entry in json.loads(content):
        if not entry["has_img_google"]:
            continue
        name = entry["name"].lower()
        name = rename.get(name, name)
        found.append(Emoji(entry["unified"], name, (entry["sheet_x"], entry["sheet_y"])))
        for codes, variant in entry.get("skin_variations", {}).items():
            tones = ", ".join(f"{TONES[code]} skin tone" for code in codes.split("-"))
            place = (variant["sheet_x"], variant["sheet_y"])
            found.append(Emoji(f"{entry['unified']} {codes}", f"{name}: {tones}", place))
    return tuple(found)


def _asset() -> dict:
    file = resources.files("score_sde.data") / "assets" / "emoji_held_out.json"
    return json.loads(file.read_text())


def _member(name: str) -> bytes:
    """A file of the package, from the cache; DataError if it cannot be had or is not as pinned."""
    cached = cache_dir() / PACKAGE.replace("@", "-") / name
    if not cached.exists():
        _fetch(cached.parent)
    content = cached.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise DataError(
            f"The cached emoji file {cached} is damaged (its checksum is another). Delete the "
            "file; it will be fetched again."
        )
    return content


def _fetch(folder: Path) -> None:
    """Fetch the package and put its three files into the cache."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            archive = npm_pack(PACKAGE, "74 MB", Path(temporary))
            contents = read_package(archive)
        except (
            OSError,
            EOFError,
            subprocess.SubprocessError,
            tarfile.TarError,
            DataError,
        ) as error:
            raise DataError(
                f"The emoji could not be fetched ({error}). Check the network, or put the files "
                f"{', '.join(SHA256)} of npm's {PACKAGE} into {folder}."
            ) from error
    try:
        for name, content in contents.items():
            with replacing(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise DataError(
            f"The emoji cannot be kept in {folder} ({error.strerror}); set SCORE_SDE_CACHE to a "
            "folder that can be written."
        ) from error
    print(f"emoji cached in {folder}")


def read_package(archive: Path) -> dict[str, bytes]:
    """The files of `MEMBERS` in the npm package; DataError unless they are as pinned."""
    contents = {}
    with tarfile.open(archive) as tar:
        for name, path in MEMBERS.items():
            contents[name] = member_of(archive, tar, f"package/{path}")
            if hashlib.sha256(contents[name]).hexdigest() != SHA256[name]:
                raise DataError(f"checksum mismatch of {path} in {archive.name}")
    return contents
