"""Data: what ships, what is fetched, what users bring, and the sentence for each misfit."""

import io
import json
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from score_sde.checks import UserError
from score_sde.data import (
    ArrayData,
    DataError,
    DataSpec,
    StreamData,
    download,
    load,
    load_data,
)
from score_sde.data.batches import EndlessSampler, check_batch
from score_sde.plotting.pictures import density_array, grid_array, image_array


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def random_image(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# What ships --------------------------------------------------------------------------------------


def test_fashion_mnist_ships_with_the_package():
    train, test = load_data("fashion_mnist"), load_data("fashion_mnist", split="test")
    assert train.raw.shape == (6000, 1, 28, 28) and test.raw.shape == (1000, 1, 28, 28)
    assert torch.equal(torch.bincount(train.condition["class_labels"]), torch.full((10,), 600))
    assert torch.equal(torch.bincount(test.condition["class_labels"]), torch.full((10,), 100))
    assert train.spec.classes[9] == "ankle boot" and train.spec.levels == 256
    # The known mean of the whole set is 0.2860 (standard deviation 0.3530).
    assert float(train.raw.double().mean()) / 255 == pytest.approx(0.2860, abs=0.003)
    flat = train.raw.flatten(1).unique(dim=0)
    assert len(flat) == 6000
    assert not torch.equal(train.raw[:1000], test.raw)
    assert (download.resources.files("score_sde.data") / "assets" / "NOTICE").is_file()


@pytest.mark.parametrize("name", ["ring8", "moons", "checkerboard", "swissroll"])
def test_toys_are_reproducible_points(name):
    data = load_data(name)
    assert data.raw.shape[1:] == (2,) and data.spec.levels is None
    assert torch.equal(data.raw, load_data(name).raw)
    assert not torch.equal(data.raw[:10], load_data(name, split="test").raw[:10])
    assert 0.3 < float(data.raw.std()) < 2


# Spec and scaling ---------------------------------------------------------------------------------


def test_scalings_and_their_inverse():
    for scaling, low, high in (("symmetric", -1, 1), ("unit", 0, 1)):
        data = load_data("fashion_mnist", scaling=scaling)
        x = data.reference(1000)
        assert (float(x.min()), float(x.max())) == (low, high)
        assert torch.equal(data.spec.to_uint8(x), data.raw[:1000])
    data = load_data("fashion_mnist", scaling="standard")
    x = data.reference(6000)
    assert abs(float(x.mean())) < 1e-4 and abs(float(x.std()) - 1) < 1e-4
    assert torch.equal(data.spec.to_uint8(x[:100]), data.raw[:100])


def test_uint8_rounds_and_clamps():
    spec = DataSpec((1, 1, 1), 0.0, 255.0, 256, shift=127.5, scale=127.5)
    x = torch.tensor([-2.0, -1.0, 0.0, 0.0039, 1.0, 3.0])[:, None, None, None]
    assert spec.to_uint8(x).flatten().tolist() == [0, 0, 128, 128, 255, 255]


def test_spec_survives_json():
    spec = load_data("fashion_mnist").spec
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


# Order of batches ---------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step():
    data = load_data("fashion_mnist", flip=True)
    first = data.batches(100, seed=0)
    batches = [next(first) for _ in range(70)]  # more than an epoch
    resumed = data.batches(100, seed=0, start=65)
    for k in range(65, 70):
        x, known = next(resumed)
        assert torch.equal(x, batches[k].x0)
        assert torch.equal(known["class_labels"], batches[k].condition["class_labels"])
    other, _ = next(data.batches(100, seed=1))
    assert not torch.equal(other, batches[0][0])


def test_every_item_once_an_epoch_also_across_batches():
    sampler = iter(EndlessSampler(10, 4, seed=3))
    seen = [i for _ in range(5) for i in next(sampler)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_batch_larger_than_the_data_repeats_items():
    data = load_data("ring8")
    data = ArrayData(data.raw[:5], {}, data.spec)
    x, _ = next(data.batches(12, seed=0))
    assert len(x) == 12 and len(x.unique(dim=0)) == 5


def test_flip_mirrors_about_half():
    raw = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    raw[..., 0] = 255
    spec = DataSpec((1, 2, 2), 0.0, 255.0, 256, 0.0, 255.0)
    x, _ = next(ArrayData(raw, {}, spec, flip=True).batches(400, seed=0))
    assert 150 < int((x[:, 0, 0, 1] == 1).sum()) < 250


# Folders, zips, arrays, datasets ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Nested, odd extensions, every mode of Pillow that people have, and things to skip."""
    write(tmp_path / "cats" / "a.PNG", random_image(0, 8, 8, 3))
    write(tmp_path / "cats" / "deep" / "b.Jpg", random_image(1, 8, 8, 3), format="JPEG")
    write(tmp_path / "dogs" / "grey.bmp", random_image(2, 8, 8))
    write(tmp_path / "dogs" / "alpha.png", random_image(3, 8, 8, 4))
    Image.fromarray(random_image(4, 8, 8)).convert("P").save(tmp_path / "dogs" / "palette.gif")
    Image.new("CMYK", (8, 8), (10, 200, 30, 5)).save(tmp_path / "dogs" / "cmyk.tif")
    deep = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "dogs" / "sixteen.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "cats" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    whole = io.BytesIO()
    Image.fromarray(random_image(5, 64, 64, 3)).save(whole, "PNG")
    (tmp_path / "cats" / "truncated.png").write_bytes(whole.getvalue()[:2000])
    return tmp_path


def test_folder_of_anything(folder):
    data = load_data(str(folder))
    assert isinstance(data, ArrayData) and data.raw.shape == (7, 3, 8, 8)
    assert data.spec.classes == ("cats", "dogs") and data.condition["class_labels"].tolist() == [
        0,
        0,
        1,
        1,
        1,
        1,
        1,
    ]
    notes = "\n".join(data.notes)
    assert "7 images" in notes and "1 other files ignored" in notes
    assert "broken.png: cannot decode" in notes and "truncated.png: cannot decode" in notes
    assert torch.equal(data.raw[0], torch.from_numpy(random_image(0, 8, 8, 3)).permute(2, 0, 1))
    names = sorted(p.name for p in (folder / "dogs").iterdir())
    sixteen = data.raw[2 + names.index("sixteen.png")]
    want = np.rint(np.linspace(0, 65535, 64) / 257).astype(np.uint8).reshape(8, 8)
    assert torch.equal(sixteen, torch.from_numpy(want).expand(3, 8, 8))


def test_zip_of_the_same_folder_is_the_same_data(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    zipped, plain = load_data(str(path)), load_data(str(folder))
    assert torch.equal(zipped.raw, plain.raw) and torch.equal(
        zipped.condition["class_labels"], plain.condition["class_labels"]
    )


def test_grey_folder_stays_grey(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.png", random_image(i, 6, 10))
    data = load_data(str(tmp_path))
    assert data.spec.shape == (1, 6, 10) and data.condition == {} and data.spec.classes == ()
    assert torch.equal(data.raw[1, 0], torch.from_numpy(random_image(1, 6, 10)))
    assert load_data(str(tmp_path), convert="rgb").spec.shape == (3, 6, 10)
    with pytest.raises(DataError, match=r"Data has 1 channel, data.channels says 3. Set data.chan"):
        load_data(str(tmp_path), channels=3)


@pytest.mark.parametrize("resize", ["center_crop", "stretch", "pad"])
def test_mixed_sizes_need_a_decision(tmp_path, resize):
    write(tmp_path / "a.png", random_image(0, 12, 8, 3))
    write(tmp_path / "b.png", random_image(1, 6, 10, 3))
    with pytest.raises(DataError, match=r"Images differ in size .* 6x10 to 12x8\). Set data.s"):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match="not all 8x8. Set data.resize"):
        load_data(str(tmp_path), size=8)
    assert load_data(str(tmp_path), size=(8, 6), resize=resize).spec.shape == (3, 8, 6)


def test_big_sets_stream_with_the_same_order(folder, monkeypatch):
    whole = load_data(str(folder), flip=True)
    monkeypatch.setattr(load, "IN_MEMORY_BYTES", 0)
    streamed = load_data(str(folder), flip=True)
    assert isinstance(streamed, StreamData) and streamed.spec == whole.spec
    one, two = whole.batches(4, seed=0, start=2), streamed.batches(4, seed=0, start=2)
    for _ in range(3):
        (x, known), (u, streamed) = next(one), next(two)
        assert torch.equal(x, u) and known.keys() == streamed.keys() == {"class_labels"}
        assert torch.equal(known["class_labels"], streamed["class_labels"])


def test_arrays_in_all_layouts(tmp_path):
    pixels = random_image(0, 9, 6, 8, 3)
    np.save(tmp_path / "hwc.npy", pixels)
    np.save(tmp_path / "chw.npy", pixels.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "keys.npz", train=pixels, train_labels=np.arange(9) % 3)
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    np.save(tmp_path / "unit.npy", (pixels / 255).astype(np.float32))
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(50, 5)))
    hwc = load_data(str(tmp_path / "hwc.npy"))
    assert hwc.spec.shape == (3, 6, 8)
    assert torch.equal(hwc.raw, load_data(str(tmp_path / "chw.npy")).raw)
    keyed = load_data(str(tmp_path / "keys.npz"))
    assert keyed.condition["class_labels"].tolist() == [0, 1, 2] * 3 and keyed.spec.classes == (
        "0",
        "1",
        "2",
    )
    assert load_data(str(tmp_path / "grey.npy")).spec.shape == (1, 6, 8)
    unit = load_data(str(tmp_path / "unit.npy"))
    assert (unit.spec.low, unit.spec.high, unit.spec.levels) == (0.0, 1.0, None)
    torch.testing.assert_close(unit.reference(9), hwc.reference(9), atol=1e-6, rtol=0)
    assert load_data(str(tmp_path / "vectors.npy")).spec.shape == (5,)


class Squares(Dataset):
    """A user's data set."""

    def __init__(self, n=10, value=0.5):
        self.n, self.value = n, value

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.full((1, 4, 4), self.value * (-1) ** i), i % 2


def test_dotted_path_to_a_dataset():
    data = load_data("test_data.Squares", options={"n": 12})
    assert isinstance(data, StreamData) and len(data) == 12 and data.spec.shape == (1, 4, 4)
    x, _ = next(data.batches(4, seed=0))
    assert x.shape == (4, 1, 4, 4) and set(x.unique().tolist()) == {-0.5, 0.5}


# Bad input ----------------------------------------------------------------------------------------


def test_bad_names_and_paths_are_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.heic").write_text("?")
    (tmp_path / "bad.zip").write_text("not a zip")
    (tmp_path / "bad.npz").write_text("not an array")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.nan], [0.0, 1.0]]))
    np.save(tmp_path / "wide.npy", np.linspace(-3, 900, 32).reshape(2, 1, 4, 4))
    np.save(tmp_path / "zero.npy", np.zeros((4, 1, 4, 4), np.float32))
    np.save(tmp_path / "two.npy", 2 * np.random.default_rng(0).random((4, 1, 4, 4)))
    write(tmp_path / "broken" / "a.png", random_image(0, 4, 4))
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG")
    cases = [
        (
            dict(name="fashion_minst"),
            "data 'fashion_minst' is unknown. Did you mean 'fashion_mnist'",
        ),
        (dict(name=str(tmp_path / "empty")), r"No images found in .*looked at 0 files"),
        (dict(name=str(tmp_path / "other")), r"extensions seen: .heic 1\). Accepted: .png .jpg"),
        (dict(name=str(tmp_path / "gone")), "does not exist"),
        (dict(name="D:\train"), "contains a tab"),
        (dict(name=str(tmp_path / "bad.zip")), "not a readable zip"),
        (dict(name=str(tmp_path / "bad.npz")), "not a readable array"),
        (dict(name=str(tmp_path / "text.npy")), "numbers are needed"),
        (dict(name=str(tmp_path / "nan.npy")), "1 items of .* hold NaN or inf, the first at index"),
        (dict(name=str(tmp_path / "wide.npy")), r"Values lie in \[-3, 900\]. Set data.range"),
        (dict(name=str(tmp_path / "zero.npy")), "variance is 0"),
        (
            dict(name=str(tmp_path / "two.npy"), range=(0.0, 1.0)),
            r"First batch is in \[.*\] but data.range says \[0, 1\]. Set data.range",
        ),
        (dict(name=str(tmp_path / "broken")), "None of the 1 images"),
        (dict(name=str(tmp_path / "broken"), strict=True), "cannot decode .* data.strict=false"),
        (dict(name="ring8", split="valid"), "data.split must be 'train' or 'test'"),
        (dict(name="ring8", flip=True), "data.flip needs images"),
        (dict(name="ring8", size=64, channels=2), "data.size and data.channels needs images"),
        (dict(name="ring8", layout="HWC"), "is known as it is"),
        (dict(name="emoji", options={"balence": True}), "is known as it is"),
        (dict(name="fashion_mnist", size=32), "Images are 28x28, not 32x32. Set data.resize"),
        (
            dict(name="fashion_mnist", scaling="unitary"),
            "must be .* Did you mean 'unit'",
        ),
        (dict(name="no_such_module.Data"), "cannot be imported"),
        (dict(name="test_data.Squares", options={"n": 0}), "has no items"),
        (dict(name="test_data.Squares", options={"m": 0}), "cannot be made"),
    ]
    for arguments, message in cases:
        try:
            load_data(**arguments)
        except UserError as error:
            assert re.search(message, str(error)), (arguments, str(error))
        else:
            pytest.fail(f"no error for {arguments}")


def test_first_batch_is_checked():
    spec = DataSpec((2,), name="x")
    with pytest.raises(DataError, match="2 of .* values are not finite"):
        check_batch(torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]), spec)
    with pytest.raises(DataError, match="Items have shape"):
        check_batch(torch.randn(3, 4), spec)


def test_padding_reaches_a_size_that_divides():
    data = load_data("fashion_mnist", size=(32, 32), resize="pad")
    assert data.spec.shape == (1, 32, 32)
    assert torch.equal(data.raw[:, :, 2:30, 2:30], load_data("fashion_mnist").raw)


# Pictures -----------------------------------------------------------------------------------------


def test_grids_and_images_hold_the_pixels():
    pixels = torch.from_numpy(random_image(0, 5, 3, 4, 6))
    grid = grid_array(pixels, columns=3, gap=1)
    assert grid.shape == (2 * 5 - 1, 3 * 7 - 1, 3)
    assert np.array_equal(grid[5:9, 7:13], pixels[4].permute(1, 2, 0).numpy())
    assert grid[4].min() == 255  # the gap
    assert image_array(pixels[0, :1]).shape == (4, 6)


def test_density_pictures_point_up():
    picture = density_array(torch.tensor([[0.0, 2.0]] * 10))
    row, column = np.unravel_index(picture.argmin(), picture.shape)
    assert row < 64 and abs(column - 128) <= 2


def test_modules_here_are_importable_by_dotted_path():
    assert "test_data" in sys.modules


def test_images_of_one_colour_are_counted_and_named(tmp_path):
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels = np.full_like(pixels, 7) if i in (2, 5) else pixels
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    notes = load_data(str(tmp_path)).notes
    assert "2 of 6 images are of one colour, the first: 2.png" in notes
