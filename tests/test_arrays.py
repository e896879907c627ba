"""Arrays, tables and their labels as people have them: layouts, number types, splits, gaps."""

import io
import zipfile

import numpy as np
import pytest
import torch

from score_sde.data import DataError, load_data
from score_sde.data.labels import classes_of_labels
from score_sde.data.layout import layout_of


def noise(*shape, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def saved(tmp_path, array, name="x.npy"):
    np.save(tmp_path / name, array)
    return str(tmp_path / name)


# Layouts and number types -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, layout",
    [
        ((3, 32, 32), "CHW"), ((32, 32, 3), "HWC"), ((16, 24, 5), "HWC"), ((5, 16, 24), "CHW"),
        ((32, 512, 3), "HWC"), ((1, 28, 28), "CHW"), ((512, 8, 8), "CHW"), ((8, 8, 6), "HWC"),
        ((2, 16, 16), "CHW"), ((16, 16, 16), "DHW"), ((28, 28), "HW"), ((1, 128), "CL"),
        ((128, 1), "LC"), ((12, 1000), "CL"), ((1000, 12), "LC"), ((7,), "D"),
        ((1, 8, 16, 16), "CDHW"), ((8, 16, 16, 2), "DHWC"),
    ],
)  # fmt: skip
def test_the_likeliest_layout(shape, layout):
    assert layout_of(shape)[0] == layout


def test_layouts_are_said_and_can_be_said_otherwise(tmp_path):
    pixels = noise(6, 16, 24, 5)
    path = saved(tmp_path, pixels)
    data = load_data(path)
    assert data.spec.shape == (5, 16, 24)
    assert torch.equal(data.raw, torch.tensor(pixels).permute(0, 3, 1, 2))
    assert "items (16, 24, 5) are read as HWC; data.layout says otherwise" in "\n".join(data.notes)
    assert load_data(path, layout="CHW").spec.shape == (16, 24, 5)
    assert load_data(path, layout="DHW").spec.shape == (1, 16, 24, 5)
    vectors = load_data(path, layout="vector", scaling="standard")
    assert vectors.spec.shape == (16 * 24 * 5,)
    with pytest.raises(DataError, match="data.layout=HW is of items with 2 axes"):
        load_data(path, layout="HW")


@pytest.mark.parametrize(
    "shape, kind, found",
    [
        ((128,), "signal", (1, 128)), ((2, 128), "signal", (2, 128)),
        ((128, 2), "signal", (2, 128)), ((16, 16), "signal", (16, 16)),
        ((4, 16, 16), "volume", (1, 4, 16, 16)), ((2, 8, 8, 8), "volume", (2, 8, 8, 8)),
        ((8, 8, 8, 2), "volume", (2, 8, 8, 8)),
    ],
)  # fmt: skip
def test_a_kind_is_enough_of_a_layout(tmp_path, shape, kind, found):
    path = saved(tmp_path, np.random.default_rng(0).normal(size=(5, *shape)))
    assert load_data(path, layout=kind).spec.shape == found


def test_rows_of_a_table_may_be_signals_and_a_kind_that_does_not_fit_is_named(tmp_path):
    data = load_data(table(tmp_path, "a,b,c\n1,2,3\n4,5,6\n"), layout="signal")
    assert data.raw.tolist() == [[[1, 2, 3]], [[4, 5, 6]]]
    with pytest.raises(DataError, match=r"volume is of items \(D, H, W\).* shape \(7,\)"):
        load_data(saved(tmp_path, noise(5, 7)), layout="volume")
    with pytest.raises(DataError, match=r"signal is of items \(L,\).* shape \(3, 8, 8\)"):
        load_data(saved(tmp_path, noise(5, 3, 8, 8)), layout="signal")


def test_signals_and_volumes(tmp_path):
    signal = np.random.default_rng(0).normal(size=(9, 1, 128)) * 40
    data = load_data(saved(tmp_path, signal))
    assert data.spec.shape == (1, 128) and data.spec.low is None and not data.spec.is_image
    torch.testing.assert_close(data.raw, torch.tensor(signal, dtype=torch.float32))
    volume = noise(3, 2, 8, 16, 16)
    assert load_data(saved(tmp_path, volume)).spec.shape == (2, 8, 16, 16)
    flat = load_data(saved(tmp_path, np.arange(5.0)))
    assert flat.spec.shape == (1,)
    with pytest.raises(DataError, match="have 5 axes; vectors"):
        load_data(saved(tmp_path, np.zeros((2, 1, 2, 3, 4, 5))))


@pytest.mark.parametrize(
    "dtype", [">f4", ">f8", "<f2", ">u2", "<i8", ">i4", "u1", "i1", "u4", "?", "f8", ">i2", "u8"]
)
def test_numbers_of_every_size_and_order_of_bytes(tmp_path, dtype):
    values = noise(5, 1, 6, 6, high=2 if dtype == "?" else 100).astype(dtype)
    data = load_data(saved(tmp_path, values), range=None if dtype == "?" else (0, 255))
    want = values.astype(np.float32)
    assert np.array_equal(data.raw.numpy().astype(np.float32), want)
    vectors = load_data(saved(tmp_path, values.reshape(5, 36)), scaling="standard")
    assert np.array_equal(vectors.raw.numpy().astype(np.float32), want.reshape(5, 36))
    reversed_rows = values[:, :, ::-1]
    assert np.array_equal(
        load_data(saved(tmp_path, reversed_rows), range=(0, 255)).raw.numpy(), want[:, :, ::-1]
    )


def test_whole_numbers_keep_their_depth(tmp_path):
    bytes_in_ints = load_data(saved(tmp_path, noise(5, 6, 6, 3, dtype=np.int64)))
    assert bytes_in_ints.raw.dtype == torch.uint8 and bytes_in_ints.spec.levels == 256
    deep = load_data(saved(tmp_path, noise(5, 6, 6, dtype=np.uint16, high=4000)))
    assert (deep.spec.low, deep.spec.high, deep.spec.levels) == (0, 4095, 4096)
    assert "uint16 values from" in "\n".join(deep.notes)
    masks = load_data(saved(tmp_path, noise(5, 6, 6, high=2).astype(bool)))
    assert (masks.spec.high, masks.spec.levels) == (1, 2)


def test_arrays_that_are_no_data(tmp_path):
    image = np.zeros((2, 1, 4, 4))
    for array, message in (
        (image + 1j, "complex numbers. Give their two parts as channels"),
        (np.array(["a"]), "numbers are needed"),
        (np.zeros((0, 3)), "there are no items"),
        (np.full((2, 3), 1e39), "NaN or inf"),
        (np.full((3, 2), [[np.inf, 0], [0, 1], [2, np.nan]]), "2 items of .* the first at index 0"),
        (image - 300, "Set data.range"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(saved(tmp_path, array))
    floats = saved(tmp_path, np.random.default_rng(0).random((2, 1, 4, 4)))
    for options in (dict(convert="grey"), dict(size=8, resize="pad")):
        with pytest.raises(DataError, match="pictures of 8 bits"):
            load_data(floats, **options)


# Files of several arrays --------------------------------------------------------------------------


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return str(tmp_path / "set.npz")


def test_the_layouts_of_medmnist_and_keras(tmp_path):
    train, val, test = noise(8, 6, 6, 3), noise(3, 6, 6, 3), 255 - noise(4, 6, 6, 3)
    labels = np.arange(8)[:, None] % 3
    medmnist = npz(
        tmp_path, val_images=val, val_labels=labels[:3], test_images=test,
        test_labels=labels[2:6], train_images=train, train_labels=labels,
    )  # fmt: skip
    data = load_data(medmnist)
    assert len(data) == 8 and data.split == "train"
    assert data.condition["class_labels"].tolist() == labels[:, 0].tolist()
    held = load_data(medmnist, split="test")
    assert torch.equal(held.raw, torch.tensor(test).permute(0, 3, 1, 2)) and held.split == "test"
    assert held.condition["class_labels"].tolist() == [2, 0, 1, 2]
    keras = npz(tmp_path, x_test=test, x_train=train, y_train=labels[:, 0], y_test=labels[4:, 0])
    assert len(load_data(keras)) == 8 and len(load_data(keras, split="test")) == 4
    assert load_data(keras, split="test").condition["class_labels"].tolist() == [1, 2, 0, 1]
    with pytest.raises(DataError, match="holds no test split; its keys are"):
        load_data(npz(tmp_path, x_train=train, y_train=labels), split="test")


def test_items_and_labels_are_never_paired_wrongly(tmp_path):
    x = noise(6, 5, 5)
    with pytest.raises(DataError, match=r"labels have shape \(5,\), but there are 6 items"):
        load_data(npz(tmp_path, x=x, y=np.zeros(5, int)))
    only = load_data(npz(tmp_path, train_images=x, test_images=x, test_labels=np.arange(6)))
    assert not only.condition and "has no labels" in "\n".join(only.notes)
    plain = load_data(npz(tmp_path, x=x, y=np.arange(6) % 2), split="test")
    assert plain.split == "all" and "the test split is all of it" in "\n".join(plain.notes)
    with pytest.raises(DataError, match="none of them is x, images or data"):
        load_data(npz(tmp_path, first=x, second=x))
    chosen = load_data(npz(tmp_path, first=x, second=x + 1), options={"items": "second"})
    assert torch.equal(chosen.raw[:, 0], torch.tensor(x + 1))
    with pytest.raises(DataError, match="holds no 'third'"):
        load_data(npz(tmp_path, first=x), options={"items": "third"})


def test_damaged_and_lying_array_files_are_a_sentence(tmp_path):
    whole = saved(tmp_path, noise(40, 5, 5))
    content = open(whole, "rb").read()
    (tmp_path / "cut.npy").write_bytes(content[:300])
    header = io.BytesIO()
    huge = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 1000)}
    np.lib.format.write_array_header_1_0(header, huge)
    (tmp_path / "lies.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content + bytes(1 << 26))
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], object))
    for name, message in (
        ("cut.npy", "not a readable array"), ("lies.npy", "not a readable array"),
        ("lies.npz", "more than the file holds"), ("bomb.npz", "a bomb"),
        ("pickled.npy", "not a readable array"), ("pickled.npz", "Python objects"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            load_data(str(tmp_path / name))


# Labels -------------------------------------------------------------------------------------------


def test_labels_become_few_classes_with_names():
    dates = np.array([20230103, 20230101, 20230103, 20230102] * 3)
    found = classes_of_labels(dates)
    assert found.names == ("20230101", "20230102", "20230103")
    assert found.numbers.tolist()[:4] == [2, 0, 2, 1]
    part = classes_of_labels(dates[:1], dates)
    assert part.numbers.tolist() == [2] and len(part.names) == 3
    assert classes_of_labels(np.array([2, 0, 2])).names == ("0", "1", "2")
    assert classes_of_labels(np.array([-1, 1, -1])).numbers.tolist() == [0, 1, 0]
    assert classes_of_labels(np.array(["b", "a"])).names == ("a", "b")
    assert classes_of_labels(np.eye(3)[[2, 0]]).numbers.tolist() == [2, 0]
    assert classes_of_labels(np.array([1.0, 3.0])).numbers.tolist() == [1, 3]
    for labels, reason in (
        (np.linspace(0, 1, 9), "not whole numbers"),
        (np.array([0.0, np.nan]), "missing"),
        (np.ones((4, 3), int), "3 values each"),
        (np.arange(5000) * 1000, "5000 different values"),
    ):
        found = classes_of_labels(labels)
        assert found.numbers is None and reason in found.note


# Tables -------------------------------------------------------------------------------------------


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


ROWS = [(1.5, 2, "x"), (2.5, 3, "y"), (0.5, 9, "x")]


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_tables_with_any_separator_and_their_label(tmp_path, sign):
    lines = [sign.join(("width", "height", "species"))]
    lines += [sign.join(map(str, row)) for row in ROWS]
    data = load_data(table(tmp_path, "\ufeff" + "\r\n".join(lines) + "\r\n"))
    assert data.raw.tolist() == [[1.5, 2], [2.5, 3], [0.5, 9]]
    assert data.spec.classes == ("x", "y") and data.condition["class_labels"].tolist() == [0, 1, 0]
    assert "2 columns: width, height; the column species is the label" in "\n".join(data.notes)
    bare = load_data(table(tmp_path, f"1{sign}2\n3{sign}5\n"))
    assert bare.raw.tolist() == [[1, 2], [3, 5]]


def test_text_and_gaps_in_tables_are_named(tmp_path):
    for text, message in (
        ("a,b\n1,x\n2,y\n", r"columns with text are no numbers: 'b' \('x' in row 1\)"),
        ("a,b\n1,2\n,3\n4,x\n", r"'b' \('x' in row 3\).*empty or NaN in 'a' \(1 of them, .*row 2"),
        ("a,b\n1,\n2,3\n", r"empty or NaN in 'b' \(1 of them, the first in row 1\)"),
        ("a,b\n1,2\n2,nan\n", r"'b' \(1 of them, the first in row 2\)"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells, not 2"),
        ("a,a\n1,2\n", "share a name"),
        ("", "is empty"),
        ("a,b\n", "no rows"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(table(tmp_path, text))
    text = "a,b,c,d\n1,x,5,p\n2,y,6,q\n4,x,8,r\n"
    data = load_data(table(tmp_path, text), options={"label": "b", "drop": ["d"]})
    assert data.raw.tolist() == [[1, 5], [2, 6], [4, 8]] and data.spec.classes == ("x", "y")
    with pytest.raises(DataError, match="the column 'e' is unknown.* Choose from a, b, c, d"):
        load_data(table(tmp_path, text), options={"drop": "e"})


def test_parquet_is_the_same_table(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason='pip install "score-sde[tables]"')
    from pyarrow import parquet

    columns = {"width": [1.5, 2.5, 0.5], "height": [2, 3, 9], "species": ["x", "y", "x"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    data = load_data(str(tmp_path / "t.parquet"))
    assert data.raw.tolist() == [[1.5, 2], [2.5, 3], [0.5, 9]] and data.spec.classes == ("x", "y")
    columns["height"] = [2, None, 9]
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"empty or NaN in 'height' \(1 of them"):
        load_data(str(tmp_path / "t.parquet"))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="not a readable table"):
        load_data(str(tmp_path / "t.parquet"))
