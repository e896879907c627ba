"""Every picture of Pillow's own tests and of scikit-image, against what Pillow reads by itself.

pip download --no-binary :all: --no-deps pillow && PILLOW_SOURCE=pillow-X.tar.gz pytest -m slow
"""

import importlib.util
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from score_sde.data.decoding import is_deep, read_picture, to_array
from score_sde.data.files import list_files, printable
from score_sde.data.images import scan_images

pytestmark = pytest.mark.slow


def pillow_images(tmp_path):
    source = os.environ.get("PILLOW_SOURCE")
    if not source:
        pytest.skip("PILLOW_SOURCE names no source distribution of Pillow (pip download)")
    with tarfile.open(source) as tar:
        tar.extractall(tmp_path, filter="data")
    return next(tmp_path.glob("*/Tests/images"))


def skimage_images(tmp_path):
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed (pip install scikit-image)")
    return Path(spec.origin).parent / "data"


def read_by_pillow(path):
    """The picture, upright, or None if Pillow alone cannot read it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(path)
            if image.format == "EPS":  # Ghostscript would be started for it
                return None
            image.load()
            return ImageOps.exif_transpose(image)
        except Exception:
            return None


def on_white(image):
    """RGB by another way than the package's: in floating point."""
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        values = np.asarray(image.convert("RGBA"), np.float64)
        alpha = values[..., 3:] / 255
        return values[..., :3] * alpha + 255 * (1 - alpha)
    return np.asarray(image.convert("RGB"), np.float64)


@pytest.mark.parametrize("source, fewest", [(pillow_images, 700), (skimage_images, 20)])
def test_every_picture_is_read_right_or_named(tmp_path, source, fewest):
    root = source(tmp_path)
    scanned = scan_images(list_files(root), size=(16, 16), resize="stretch")
    notes = "\n".join(scanned.notes)
    read, equal, deep = set(scanned.paths), 0, 0
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        name = file.relative_to(root).as_posix()
        if name not in read:
            # Not read by us though Pillow alone can: only what unpacks without a bound.
            assert printable(name) in notes, name
            assert read_by_pillow(file) is None or "compressed FITS" in notes, name
            continue
        theirs = read_by_pillow(file)
        ours = read_picture(scanned.files, name)
        if theirs is None:  # a PNG with megabytes of text
            assert ours.format == "PNG", name
            continue
        assert ours.mode == theirs.mode and ours.size == theirs.size, name
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), name
        if is_deep(ours.mode):
            deep += 1
            continue
        array = to_array(ours, name, "RGB", None, None).transpose(1, 2, 0)
        assert np.abs(array - on_white(theirs)).max() <= 1, name
        equal += 1
    print(f"{equal} pictures equal to Pillow's, {deep} of 16 or 32 bits, {len(read)} read")
    assert equal >= fewest


def test_the_zip_of_them_is_the_same_set(tmp_path):
    root = pillow_images(tmp_path)
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            packed.write(file, file.relative_to(root))
    whole = scan_images(list_files(root), size=(16, 16), resize="stretch")
    zipped = scan_images(list_files(archive), size=(16, 16), resize="stretch")
    bombs = set(whole.paths) - set(zipped.paths)  # pictures of one colour may look like one
    assert set(zipped.paths) <= set(whole.paths) and len(bombs) < 5
    assert all(f"{printable(name)}: cannot decode" in "\n".join(zipped.notes) for name in bombs)
