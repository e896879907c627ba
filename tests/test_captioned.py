"""Captioned data: coloured shapes with their exact scorer, and the emoji where they are cached."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.checks import cache_dir
from score_sde.data import DataError, emoji, load, load_data
from score_sde.data.shapes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    draw_shapes,
    pair_of,
    recognise,
    score_shapes,
)


def test_shapes_hold_out_pairs_but_no_colour_and_no_shape():
    train, test = load_data("shapes"), load_data("shapes", split="test")
    assert train.raw.shape == (4000, 3, 16, 16) and train.split == "train"
    seen = {pair_of(c) for c in train.captions}
    assert {pair_of(c) for c in test.captions} == set(HELD_OUT) and not seen & set(HELD_OUT)
    assert {c for c, _ in seen} == set(COLOURS) and {s for _, s in seen} == set(SHAPES)
    assert len(seen) == 20 and test.split == "test"
    assert torch.equal(train.raw, load_data("shapes").raw)


def test_every_shape_is_recognised_also_under_noise():
    every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    images, captions = draw_shapes(480, every, seed=5)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert recognise(pixels) == [pair_of(c) for c in captions]
    noisy = pixels + 40 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    assert score_shapes(noisy, captions).both > 0.99
    wrong = [c.replace("circle", "cross") for c in captions]
    assert score_shapes(pixels, wrong).shape == 0.75 and score_shapes(pixels, wrong).colour == 1
    # Half of what a sample should show: the right colour in the shape of something else.
    blank = torch.full((1, 3, 16, 16), 255.0)
    blank[:, :, 4:11, 4:11] = torch.tensor(COLOURS["blue"])[:, None, None]
    assert recognise(blank) == [("blue", "square")]
    with pytest.raises(DataError, match="must name one colour and one shape"):
        score_shapes(pixels[:1], ["a red dog"])


def test_conditions_are_added_to_captions_and_travel_in_batches():
    data = load_data("shapes", split="test")
    rows = torch.arange(400.0)[:, None].expand(400, 5)
    batch = next(data.with_condition(pooled=rows).batches(8, seed=0))
    numbers = batch.condition["pooled"][:, 0].long()
    assert torch.equal(batch.x0, data.spec.to_model(data.raw[numbers]))
    assert not data.condition
    with pytest.raises(DataError, match="3 rows of pooled do not fit 400 samples"):
        data.with_condition(pooled=rows[:3])


def test_fingerprints_know_content_captions_and_conditions():
    data, again = load_data("shapes", split="test"), load_data("shapes", split="test")
    assert data.fingerprint() == again.fingerprint()
    again.raw[7, 0, 0, 0] += 1
    assert data.fingerprint() != again.fingerprint()
    other = load_data("shapes", split="test")
    other.captions = ("a red dog", *data.captions[1:])
    assert data.fingerprint() != other.fingerprint()
    known = data.with_condition(class_labels=torch.zeros(400, dtype=torch.int64))
    assert known.fingerprint() != data.fingerprint()


cached = cache_dir() / emoji.PACKAGE.replace("@", "-")


@pytest.mark.skipif(not cached.is_dir(), reason="the emoji are not cached: load_data('emoji')")
def test_emoji_and_their_held_out_captions():
    train, test = load_data("emoji"), load_data("emoji", split="test")
    assert train.raw.shape == (3590, 3, 32, 32) and test.raw.shape == (195, 3, 32, 32)
    kinds = emoji.held_out()
    assert [len(kind) for kind in kinds.values()] == [99, 90, 6]
    assert sorted(test.captions) == sorted(c for kind in kinds.values() for c in kind.values())
    assert not set(train.captions) & set(test.captions)
    heart = test.raw[test.captions.index("orange heart")].flatten(1).float()
    colour = heart[:, heart.min(0).values < 200].mean(1)
    assert colour[0] > 220 and 90 < colour[1] < 180 and colour[2] < 60  # orange
    whites = (train.raw == 255).all(1).flatten(1).float().mean(1)
    assert 0.1 < float(whites.mean()) < 0.6  # drawn on white
    large = load_data("emoji", split="test", size=64)
    assert large.raw.shape == (195, 3, 64, 64) and large.captions == test.captions
    small = torch.nn.functional.avg_pool2d(large.raw.float(), 2)
    assert float((small - test.raw).abs().mean()) < 6  # the same drawings


def package(path, contents):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_package_of_other_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_CACHE", str(tmp_path / "cache"))
    other = package(tmp_path / "other.tgz", {"emoji.json": json.dumps([]).encode()})
    with pytest.raises(DataError, match="checksum mismatch of emoji.json"):
        emoji.read_package(other)
    cut = tmp_path / "cut.tgz"
    noise = np.random.default_rng(0).bytes(4000)
    whole = package(tmp_path / "whole.tgz", {"emoji.json": noise}).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for archive, message in ((other, "checksum"), (cut, "could not be fetched")):
        monkeypatch.setattr(emoji, "npm_pack", lambda *_, found=archive: found)
        with pytest.raises(DataError, match=message):
            load_data("emoji")
    folder = tmp_path / "cache" / "emoji-datasource-google-16.0.0"
    folder.mkdir(parents=True)
    (folder / "emoji.json").write_text("[]")
    with pytest.raises(DataError, match="is damaged"):
        load_data("emoji")


# Folders and zips ---------------------------------------------------------------------------------


def pictures(folder, names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)


NAMES = ("a.png", "b.png", "sub/c.png")
LINES = [{"file_name": n, "text": f"picture {n}", "more": 1} for n in NAMES]


def written(folder, kind):
    """Captions of NAMES in one of the three ways."""
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    elif kind == "csv":
        rows = [f'{row["file_name"]},"{row["text"]}"' for row in LINES]
        (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    else:
        for row in LINES:
            (folder / row["file_name"]).with_suffix(".txt").write_text(row["text"] + "\n")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_captions_of_folders_and_zips(tmp_path, kind, monkeypatch):
    folder = tmp_path / "set"
    pictures(folder, NAMES)
    written(folder, kind)
    data = load_data(str(folder))
    assert data.captions == tuple(f"picture {n}" for n in NAMES)
    assert "captions from" in "\n".join(data.notes) and "ignored" not in "\n".join(data.notes)
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(folder.rglob("*.*")):
            zipped.write(file, file.relative_to(folder))
    assert load_data(str(archive)).captions == data.captions
    monkeypatch.setattr(load, "IN_MEMORY_BYTES", 0)
    assert load_data(str(folder)).captions == data.captions


def test_captions_of_splits_are_their_own(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split, NAMES[:2])
        lines = [{"file_name": n, "text": f"{split} {n}"} for n in NAMES[:2]]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load_data(str(tmp_path), split="test").captions == ("test a.png", "test b.png")


def test_missing_and_broken_captions_are_named(tmp_path):
    pictures(tmp_path, NAMES)
    (tmp_path / "a.txt").write_text("notes of mine")
    assert load_data(str(tmp_path)).captions is None  # one of three is no set of captions
    (tmp_path / "b.txt").write_text("more")
    with pytest.raises(DataError, match=r"1 of 3 images have no caption in the .txt files: sub/c"):
        load_data(str(tmp_path))
    assert load_data(str(tmp_path), options={"captions": False}).captions is None
    for text, message in (
        (json.dumps(LINES[0]), r"2 of 3 images have no caption in metadata.jsonl: b.png, sub/c"),
        (json.dumps(LINES[0] | {"text": " "}), "3 of 3 images have no caption"),
        ('{"file_name": "a.png"', "metadata.jsonl is not a table of captions"),
        ('{"image": "a.png", "text": "x"}', "row 1 must have a file_name and a text; it has image"),
        ("3", "row 1 must have"),
    ):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(DataError, match=message):
            load_data(str(tmp_path))
    more = [*LINES, {"file_name": "../gone.png", "text": "x"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, more)))
    data = load_data(str(tmp_path))
    assert "1 captions are of files not here: ../gone.png" in "\n".join(data.notes)


def test_what_is_rare_is_repeated():
    captions = ["woman: dark skin tone", "man: light skin tone", "large blue square", "pizza",
                "light blue heart", "woman surfing: dark skin tone"]  # fmt: skip
    want = [0, 1] + [2] * 8 + [3] * 2 + [4] * 8 + [5] * 2
    assert emoji.balanced_places(captions) == want
    related = [*captions, "person surfing"]  # the same drawing, but for tone and gender
    assert emoji.balanced_places(related) == want[:-1] + [6]
