"""What a command writes: a folder that belongs to one request to one run, or a file of its own.

runs/vp_fashion/samples/heun_nfe39_seeds0-63_1a2b3c4d/
    settings.json    the mark: what made this folder, of which run, the whole request, the result
    parts/           what is done so far; the same command goes on from it, then it goes

Another request has another folder: the eight digits are a checksum of the request, in which are
the run's identity, a checksum of its weights, seeds, data and every setting. A folder without our
mark is not touched unless it is empty, one of another request neither. Every file is written beside
its place and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from typing_extensions import Required, TypedDict

from score_sde import distributed
from score_sde.checks import LOOSE, UserError, read_arrays, try_json
from score_sde.runs.directory import RunDirectory, RunError
from score_sde.runs.run import Run
from score_sde.training.checkpoints import tensor_sum
from score_sde.version import __version__
from score_sde.writing import PARTIAL, replacing

FORMAT = "score_sde output"
SETTINGS = "settings.json"
_PART = re.compile(r"\d{8,}_\d{8,}\.npz")


class Mark(TypedDict, total=False):
    """What settings.json holds, beside the facts of the result. files: once all are there."""

    __pydantic_config__ = LOOSE  # type: ignore[misc]
    format: Required[Literal["score_sde output"]]
    request: Required[dict[str, Any]]
    files: list[str]


@dataclass
class Output:
    """A folder for what one request makes. Make it by `open_output`."""

    folder: Path
    request: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any] | None:
        """What `finish` has written down; None while files are missing."""
        found = try_json(self.folder / SETTINGS, Mark)
        if found is None or "files" not in found or found["request"] != self.request:
            return None
        return dict(found) if all((self.folder / f).is_file() for f in found["files"]) else None

    def check(self) -> bool:
        """Whether the folder is there for this request; nothing is made.

        RunError if it is somebody else's, of another request, or cannot be made.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; give an empty or new folder as --out.")
        found = try_json(folder / SETTINGS, Mark)
        if (folder / "parts").is_symlink():
            raise RunError(f"{folder / 'parts'} is a link: remove it, or give another --out.")
        if found is not None and found["request"] != self.request:
            raise RunError(
                f"{folder} holds what another request made ("
                f"{_differences(found['request'], self.request)}): give another --out, or leave "
                "it out."
            )
        if found is None and folder.is_dir():
            if not all(PARTIAL.fullmatch(p.name) for p in folder.iterdir()):
                raise RunError(f"{folder} holds other files; give an empty or new folder as --out.")
        check_place(folder)
        return found is not None

    def claim(self) -> None:
        """Make the folder and mark it, when there is something to write into it."""
        if not self.check():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mark({})

    def forget(self) -> None:
        """Start again: what is done so far goes, results stay until they are replaced."""
        if distributed.is_writer() and self.check():
            self._remove_parts()
            self._mark({})
        distributed.wait()

    def part(self, rows: range) -> Path:
        """Where the results of these items are until all are there."""
        return self.folder / "parts" / f"{rows.start:08d}_{rows.stop:08d}.npz"

    def read_part(self, rows: range) -> dict[str, np.ndarray] | None:
        """The results of these items; None if they are not there, or cannot be read."""
        path = self.part(rows)
        if not path.is_file():
            return None
        try:
            return read_arrays(path, "a whole part")
        except UserError as error:
            print(f"{error} It is made again.")
            return None

    def parts(self, batches: Sequence[range]) -> list[dict[str, np.ndarray]]:
        """The results of all batches; RunError if one has gone."""
        found = {rows: self.read_part(rows) for rows in batches}
        for rows, part in found.items():
            if part is None:
                raise RunError(f"{self.part(rows)} has gone: give the same command again.")
        return [part for part in found.values() if part is not None]

    def write_part(self, rows: range, values: Mapping[str, np.ndarray]) -> None:
        """Keep the results of these items."""
        self.claim()
        self.part(rows).parent.mkdir(exist_ok=True)
        write_npz(self.part(rows), values)

    def finish(self, facts: Mapping[str, Any], files: list[str]) -> None:
        """Everything is written: say so in settings.json, and remove the parts."""
        self._mark({**facts, "files": files})
        self._remove_parts()

    def clear(self) -> None:
        """Remove parts of what is finished: who finished it was killed before they were gone."""
        if (self.facts or {}).get("files"):
            self._remove_parts()

    def note(self, facts: Mapping[str, Any]) -> None:
        """Say in settings.json how parts are made that stay where they are."""
        self.claim()
        self._mark({**facts, "files": []})

    def _remove_parts(self) -> None:
        parts = self.folder / "parts"
        for folder, ours in ((parts, _PART), (parts, PARTIAL), (self.folder, PARTIAL)):
            for path in folder.iterdir() if folder.is_dir() else ():
                if ours.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        if parts.is_dir() and not any(parts.iterdir()):
            parts.rmdir()

    def _mark(self, facts: Mapping[str, Any]) -> None:
        mark = {"format": FORMAT, "layout": 1, "version": __version__}
        write_json(self.folder / SETTINGS, {**facts, **mark, "request": self.request})


def open_output(
    run: Run, kind: str, name: str, request: Mapping[str, Any], out: str | Path | None = None
) -> Output:
    """The folder of a request to a run: ``out``, or <run>/<kind>/<name>_<checksum>.

    It is made with the first results: what cannot be done leaves nothing behind. Raises RunError
    for a folder that holds anything else.
    """
    asked = plain({"kind": kind, **identity(run), **request})
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    output = Output(Path(out) if out else run.home / kind / f"{name}_{digest}", asked)
    if output.check() and distributed.is_writer():
        output.clear()
    distributed.wait()
    return output


def check_place(folder: str | Path) -> None:
    """RunError unless files can be made in a folder, which need not be there; nothing stays.

    It is asked before the work: permissions do not tell of read-only and other special places.
    """
    folder = Path(folder).absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error.strerror}); give another --out.") from None


def identity(run: Run) -> dict[str, Any]:
    """Which run, and which state of it: its mark, step, and a checksum of all that makes the model.

    A run that was trained anew or on, or whose files were changed, has another one.
    """
    model = {key: run.config.get(key) for key in ("sde", "net", "model")}
    made = {**model, "data": run.data_spec.to_dict(), "std": run.data_std, "process": str(run.sde)}
    if run.codec is not None:
        made["codec"] = run.codec.checksum
    settings = zlib.crc32(json.dumps(plain(made), sort_keys=True).encode())
    return {
        "run": RunDirectory(run.path).identity,
        "step": run.step,
        "model": f"{tensor_sum(run.score.net.state_dict())}-{settings:08x}",
    }


def file_checksum(path: Path) -> str:
    """Of a file's content, or of the names and sizes in a folder."""
    if path.is_dir():
        files = sorted((str(p.relative_to(path)), p.stat().st_size) for p in path.rglob("*"))
        return f"{zlib.crc32(repr(files).encode()):08x}"
    return f"{zlib.crc32(path.read_bytes()):08x}"


# Files --------------------------------------------------------------------------------------------


def json_text(values: Any) -> str:
    """JSON that every reader takes: NaN and infinities are null."""
    return json.dumps(plain(values), indent=1, allow_nan=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """See `json_text`."""
    with replacing(path) as file:
        file.write(json_text(values).encode())


def write_npz(path: Path, values: Mapping[str, np.ndarray], compress: bool = False) -> None:
    """Arrays by name."""
    with replacing(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **dict(values))  # type: ignore[arg-type]


def write_png(path: Path, pixels: np.ndarray) -> None:
    """A picture (H, W), (H, W, 3) or (H, W, 4), uint8."""
    with replacing(path) as file:
        file.write(png_bytes(pixels))


def png_bytes(pixels: np.ndarray) -> bytes:
    """The PNG file of a picture, see `write_png`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_beside(path: Path, content: str | bytes) -> Path:
    """Write text or bytes into a file of its own, and return where it is.

    A file that is there is never replaced: unless it holds this very content, the new one is
    called <name>_<checksum> instead.
    """
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and not (path.is_file() and path.read_bytes() == content):
        path = path.with_name(f"{path.stem}_{zlib.crc32(content):08x}{path.suffix}")
    with replacing(path) as file:
        file.write(content)
    return path


def plain(value: Any) -> Any:
    """A value as strict JSON returns it: tuples are lists, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two requests, for an error."""
    names = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    parts = [f"{k} {_short(there.get(k))} there, {_short(here.get(k))} here" for k in names[:3]]
    return "; ".join(parts) + "; ..." * (len(names) > 3)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
