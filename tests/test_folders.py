"""Folders and zips as people have them: ranges, links, splits, damage, bombs; each kind once."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.checks import UserError
from score_sde.data import ArrayData, DataError, StreamData, batches, load, load_data
from score_sde.data.decoding import without_texts


def noise(seed, *shape, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def notes_of(folder, **options):
    return "\n".join(load_data(str(folder), **options).notes)


# Ranges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, bounds",
    [
        (noise(0, 2, 6, 6, high=4096, dtype=np.uint16), (0, 4095)),
        (noise(0, 2, 6, 6, high=65536, dtype=np.uint16), (0, 65535)),
        (noise(0, 2, 6, 6, high=65536, dtype=np.int32) - 900, None),
        (np.random.default_rng(0).random((2, 6, 6)).astype(np.float32), (0, 1)),
        (np.random.default_rng(0).normal(size=(2, 6, 6)).astype(np.float32), None),
        ((255 * np.random.default_rng(0).random((2, 6, 6))).astype(np.float32), (0, 255)),
    ],
)
def test_deep_images_are_mapped_from_the_range_that_the_set_has(tmp_path, values, bounds):
    for i, array in enumerate(values):
        save(tmp_path / f"{i}.tif", array)
    low, high = bounds or (float(values.min()), float(values.max()))
    want = np.rint((values.astype(np.float64) - low) * 255 / (high - low))
    data = load_data(str(tmp_path))
    assert np.abs(data.raw[:, 0].numpy() - want).max() <= (0 if bounds else 1)
    assert any("becomes black" in n and "data.range=" in n for n in data.notes)
    given = load_data(str(tmp_path), range=(low, high))
    assert torch.equal(given.raw, data.raw)


def test_a_sliver_of_the_range_is_said_and_what_is_cut_is_named(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.tif", noise(i, 6, 6, high=100, dtype=np.uint16) + np.uint16(30000))
    assert "sliver" in notes_of(tmp_path) and "data.range=300" in notes_of(tmp_path)
    ranged = load_data(str(tmp_path), range=(30000, 30100))
    assert int(ranged.raw.max()) > 240 and int(ranged.raw.min()) < 15
    notes = notes_of(tmp_path, range=(30050, 30100))
    assert "3 images hold values outside data.range, which are cut: 0.tif" in notes
    save(tmp_path / "nan.tif", np.full((6, 6), np.nan, np.float32))
    assert "nan.tif: cannot decode (it holds NaN" in notes_of(tmp_path)


# Links, hidden folders, splits --------------------------------------------------------------------


def test_linked_class_folders_are_followed_once_and_loops_end(tmp_path):
    for i in range(2):
        save(tmp_path / "elsewhere" / "cats" / f"{i}.png", noise(i, 4, 4))
    save(tmp_path / "set" / "dogs" / "a.png", noise(5, 4, 4))
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set" / "dogs")
    (tmp_path / "set" / "dogs" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "dogs" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load_data(str(tmp_path / "set"))
    assert data.spec.classes == ("cats", "dogs") and len(data) == 3
    notes = "\n".join(data.notes)
    assert "again links to a folder" in notes and "dogs/up links to" in notes
    assert "dogs/gone.png: cannot decode" in notes


def test_what_is_no_file_is_not_opened_and_hidden_folders_are_named(tmp_path):
    save(tmp_path / "a.png", noise(0, 4, 4))
    save(tmp_path / ".thumbnails" / "a.png", noise(0, 2, 2))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    notes = notes_of(tmp_path)
    assert "1 hidden files skipped, in .thumbnails" in notes
    assert "pipe.png: cannot decode (not a regular file)" in notes
    assert "zero.png: cannot decode (not a regular file)" in notes


def test_folders_train_and_test_are_the_splits(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for i in range(count):
            save(tmp_path / split / "ab"[i % 2] / f"{i}.png", noise(i + count, 4, 4))
    train, test = load_data(str(tmp_path)), load_data(str(tmp_path), split="test")
    assert (train.split, len(train), test.split, len(test)) == ("train", 4, "test", 2)
    assert train.spec.classes == test.spec.classes == ("a", "b")
    assert test.condition["class_labels"].tolist() == [0, 1]
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as zipped:  # as people pack: with the folder itself
        for file in sorted(tmp_path.rglob("*.png")):
            zipped.write(file, "photos" / file.relative_to(tmp_path))
    packed = load_data(str(archive), split="test")
    assert torch.equal(packed.raw, test.raw) and packed.spec.classes == ("a", "b")
    with pytest.raises(DataError, match="has no test split: its folders are train"):
        save(tmp_path / "only" / "train" / "x.png", noise(0, 4, 4))
        load_data(str(tmp_path / "only"), split="test")


def test_a_folder_without_splits_says_that_all_of_it_is_taken(tmp_path):
    save(tmp_path / "train" / "a.png", noise(0, 4, 4))  # a steam engine
    save(tmp_path / "ship" / "b.png", noise(1, 4, 4))
    data = load_data(str(tmp_path), split="test")
    assert data.split == "all" and data.spec.classes == ("ship", "train")
    assert "the test split is all of it" in "\n".join(data.notes)


# Damage -------------------------------------------------------------------------------------------


def exif(orientation):
    """A JPEG whose EXIF says how it lies."""
    buffer = io.BytesIO()
    pixels = np.repeat(np.linspace(0, 255, 8).astype(np.uint8)[None], 6, 0)
    kind, value = (
        (2, b"abc\0") if orientation == "text" else (3, struct.pack(">HH", orientation, 0))
    )
    tag = struct.pack(">HHI", 0x0112, kind, 4 if kind == 2 else 1) + value
    tags = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + tag + bytes(4)
    Image.fromarray(pixels).save(buffer, "JPEG", exif=tags, quality=95)
    return buffer.getvalue()


def test_exif_turns_what_it_can_and_says_nothing_where_it_is_broken(tmp_path):
    for name, orientation in (("turned", 6), ("text", "text"), ("nine", 9), ("usual", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(exif(orientation))
    turned = load_data(str(tmp_path / "turned")).raw[0, 0]
    assert turned.shape == (8, 6) and int(turned[0, 0]) < 20 and int(turned[7, 0]) > 235
    usual = load_data(str(tmp_path / "usual")).raw
    for name in ("text", "nine"):
        assert torch.equal(load_data(str(tmp_path / name)).raw, usual)
    garbled = exif(6).replace(b"MM\x00*", b"MM\xff\xff")
    (tmp_path / "usual" / "y.jpg").write_bytes(garbled)
    assert len(load_data(str(tmp_path / "usual"))) == 2


def test_a_png_with_megabytes_of_text_is_a_picture(tmp_path):
    pixels = noise(0, 5, 5, 3)
    content = png(pixels)
    chunk = b"zTXt" + b"Comment\x00\x00" + zlib.compress(b"x" * 3_000_000)
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:33] + text + content[33:])
    assert without_texts((tmp_path / "a.png").read_bytes()) == content
    assert torch.equal(load_data(str(tmp_path)).raw[0].permute(1, 2, 0), torch.tensor(pixels))


def bomb(side):
    """A PNG of one colour, side x side."""
    rows = zlib.compress(bytes(side // 8 + 1) * side, 9)
    out = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    for chunk in (b"IHDR" + header, b"IDAT" + rows, b"IEND"):
        out += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return out


@pytest.mark.filterwarnings("error")
def test_one_bad_file_is_named_whatever_is_wrong_and_ends_nothing(tmp_path):
    folder = tmp_path / "set"
    save(folder / "good.png", noise(0, 8, 8, 3))
    (folder / "bomb.png").write_bytes(bomb(30_000))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"<html>not found</html>")
    whole = png(noise(1, 40, 40, 3))
    for i, at in enumerate(range(8, 400, 23)):
        damaged = bytearray(whole)
        damaged[at : at + 4] = b"\xff\xff\xff\xff"
        (folder / f"damaged{i:02d}.png").write_bytes(bytes(damaged))
    for i, end in enumerate((12, 30, 60, 200)):
        (folder / f"cut{i}.png").write_bytes(whole[:end])
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as handle:
        handle.write(png(noise(2, 8, 8, 3)))
    data = load_data(str(folder), size=8, resize="stretch")
    notes = "\n".join(data.notes).encode("ascii", "backslashreplace").decode()
    assert "bomb.png: cannot decode (30000x30000 pixels" in notes or "bomb.png: cannot" in notes
    good = 2 + sum(1 for name in data.names if name.startswith("damaged"))
    assert len(data) == good and "\n".join(data.notes).encode("utf-8")
    skipped = [f"cut{i}.png" for i in range(4)] + ["empty.png", "text.jpg"]
    assert all(f"{name}: cannot decode" in notes for name in skipped)
    assert data.name_of(len(data) - 1).encode("utf-8")  # can be printed


def test_members_of_a_zip_that_are_damaged_or_bombs_are_named(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", png(noise(i, 8, 8)))
        archive.writestr("black.bmp", bytes(1 << 26), zipfile.ZIP_DEFLATED)
        archive.writestr("other.png", png(noise(7, 8, 8)), zipfile.ZIP_BZIP2)
    content = bytearray(path.read_bytes())
    content[content.index(b"1.png") + 40] ^= 255  # its checksum fails
    path.write_bytes(bytes(content))
    data = load_data(str(path))
    notes = "\n".join(data.notes)
    assert len(data) == 2 and "1.png: cannot decode" in notes
    assert "black.bmp: cannot decode" in notes and "a bomb" in notes
    assert "other.png: cannot decode (packed in a way" in notes


def test_a_small_zip_of_large_pictures_streams(tmp_path, monkeypatch):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            archive.writestr(f"{i:02d}.png", bomb(600))
    monkeypatch.setattr(load, "FREE_BYTES", 1 << 20)
    assert path.stat().st_size * load.LARGEST_RATIO < 40 * 600 * 600
    with pytest.raises(DataError, match="variance is 0"):
        load_data(str(path))
    monkeypatch.setattr(load, "check_batch", lambda x, spec: None)
    data = load_data(str(path))
    assert isinstance(data, StreamData) and len(data) == 40
    monkeypatch.setattr(batches, "REFERENCE_BYTES", 1 << 22)
    assert len(data.reference(40)) == 2


def test_settings_that_are_wrong_whatever_the_data(tmp_path):
    save(tmp_path / "a.png", noise(0, 8, 8))
    assert load_data(str(tmp_path), size=(4,), resize="stretch").spec.shape == (1, 4, 4)
    assert load_data(str(tmp_path), size=[4, 2], resize="stretch").spec.shape == (1, 4, 2)
    for options, message in (
        (dict(size=0), "data.size must be"),
        (dict(size=(1, 2, 3)), "data.size must be"),
        (dict(size=True), "data.size must be"),
        (dict(convert="nonsense"), "data.convert must be 'auto', 'grey'"),
        (dict(resize="zoom"), "data.resize must be 'center_crop'"),
        (dict(layout="WHC"), "data.layout must be .* .got 'WHC'.. Did you mean 'HWC'"),
        (dict(range=(3, 1)), "low < high"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(str(tmp_path), **options)
    with pytest.raises(DataError, match="data.name is empty: say what to train on with --data"):
        load_data("")


def test_streams_and_arrays_have_equal_items_but_stay_apart(tmp_path, monkeypatch):
    for i in range(6):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", noise(i, 4, 4))
    whole = load_data(str(tmp_path))
    monkeypatch.setattr(load, "IN_MEMORY_BYTES", 0)
    streamed = load_data(str(tmp_path))
    assert isinstance(whole, ArrayData) and isinstance(streamed, StreamData)
    first = streamed.fingerprint()
    assert first == load_data(str(tmp_path)).fingerprint()
    save(tmp_path / "a" / "0.png", noise(99, 4, 4))
    assert first != load_data(str(tmp_path)).fingerprint()


def test_a_stack_of_pictures_is_said_to_be_one(tmp_path):
    pages = [Image.fromarray(noise(i, 4, 4)) for i in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    save(tmp_path / "one.tif", noise(7, 4, 4))
    data = load_data(str(tmp_path))
    assert torch.equal(data.raw[1, 0], torch.tensor(noise(0, 4, 4)))
    notes = "\n".join(data.notes)
    assert "1 files hold several pictures; the first of each is read: stack.tif" in notes


def test_paths_that_are_no_data(tmp_path):
    save(tmp_path / "one.png", noise(0, 4, 4))
    (tmp_path / "x.npy").write_bytes(b"PK\x03\x04 no array")
    for path, message in (
        (tmp_path / "one.png", "is one file, and neither"),
        (tmp_path / ("a" * 300), "does not exist|cannot be opened"),
        (tmp_path / "x.npy", "not a readable array"),
        (tmp_path / "x\0y", "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(str(path))
    for options, message in (
        (dict(workers=-1), "data.workers must be at least 0"),
        (dict(flip="yes"), "data.flip must be True or False"),
        (dict(size="64"), "data.size must be"),
        (dict(options=3), "data.options must be a dictionary"),
        (dict(range=(1, 2, 3)), "data.range"),
        (dict(strikt=True), "data.strikt is unknown"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(tmp_path, **options)
    assert load_data(tmp_path).spec.shape == (1, 4, 4)
