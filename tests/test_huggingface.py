"""Hugging Face's data sets: what their columns become, and what is said of those that are wrong."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import DataError, StreamData, load_data
from score_sde.data.huggingface import is_huggingface

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3)).astype(np.uint8)


def pictures(datasets, n=9):
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]),
        text=datasets.Value("string"),
    )  # fmt: skip
    columns = {
        "image": [Image.fromarray(p) for p in PIXELS[:n]],
        "label": [i % 2 for i in range(n)],
        "text": [f"a picture of number {i}" for i in range(n)],
    }
    return datasets.Dataset.from_dict(columns, features)


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason='pip install "score-sde[datasets]"')


def test_a_saved_data_set_is_read_by_place_and_goes_on_where_it_was(tmp_path, datasets):
    both = datasets.DatasetDict(train=pictures(datasets), validation=pictures(datasets, 4))
    both.save_to_disk(str(tmp_path / "d"))
    data = load_data(tmp_path / "d")
    assert isinstance(data, StreamData) and data.split == "train" and len(data) == 9
    assert torch.equal(data.raw_items(range(9)), torch.tensor(PIXELS).permute(0, 3, 1, 2))
    assert data.spec.classes == ("cat", "dog") and data.spec.levels == 256
    assert data.captions[3] == "a picture of number 3"
    assert data.condition_items(range(3))["class_labels"].tolist() == [0, 1, 0]
    assert len(load_data(tmp_path / "d", split="test")) == 4
    whole, later = data.batches(4, seed=3), data.batches(4, seed=3, start=5)
    batches = [next(whole) for _ in range(6)]
    again = next(later)
    assert torch.equal(again.x0, batches[5].x0)
    assert torch.equal(again.condition["class_labels"], batches[5].condition["class_labels"])


def test_vectors_and_one_table_without_splits(tmp_path, datasets):
    values = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    datasets.Dataset.from_dict({"x": values.tolist()}).save_to_disk(str(tmp_path / "d"))
    data = load_data(tmp_path / "d", scaling="standard")
    torch.testing.assert_close(data.raw_items(range(6)), torch.tensor(values))
    assert data.split == "all" and data.spec.classes == ()


def test_what_cannot_be_used_is_said(tmp_path, datasets, monkeypatch):
    table = datasets.Dataset.from_dict({"number": [1, 2]})
    table.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="has the columns number; its value must be one of x0"):
        load_data(tmp_path / "d")
    with pytest.raises(DataError, match="data set: 'label' is unknown. Choose from subset"):
        load_data(tmp_path / "d", options={"label": "a"})
    datasets.DatasetDict(a=table, b=table).save_to_disk(str(tmp_path / "ab"))
    with pytest.raises(DataError, match="has no split 'train'; its splits are a, b"):
        load_data(tmp_path / "ab")
    for file in (tmp_path / "d").glob("*.arrow"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a data set that its library loads"):
        load_data(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:a/b needs .* pip install 'score-sde\[datasets\]'"):
        load_data("hf:a/b")
    assert is_huggingface(str(tmp_path / "d")) and not is_huggingface(str(tmp_path))


def test_a_name_of_the_hub_that_cannot_be_had(datasets):
    with pytest.raises(DataError, match="hf:nobody/nothing is not a data set that its"):
        load_data("hf:nobody/nothing")
