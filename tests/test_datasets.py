"""A user's torch Dataset: whatever its items look like, training gets tensors and classes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from score_sde.checks import UserError
from score_sde.data import load_data

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3)).astype(np.uint8)
WORDS = ["cat", "dog", "cat"] * 4


def item_of(kind, i):
    pixels, label = PIXELS[i], i % 3
    return {
        "pil": Image.fromarray(pixels),
        "pil_pair": (Image.fromarray(pixels), label),
        "grey": Image.fromarray(pixels[..., 0]),
        "hwc": (pixels, label),
        "chw": (torch.tensor(pixels).permute(2, 0, 1), torch.tensor(label)),
        "dict": {"image": pixels, "label": label, "id": f"n{i}"},
        "words": (pixels, WORDS[i]),
        "one_hot": (pixels, np.eye(3)[label]),
        "extra": (pixels, label, "more", {"and": "more"}),
        "flipped": pixels[:, ::-1],
        "uint16": (pixels.astype(np.uint16) * 16, label),
        "int64": torch.tensor(pixels).long(),
        "big_endian": pixels.astype(">f4"),
        "bfloat16": torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(i)).bfloat16(),
        "captions": {"image": pixels, "caption": f"picture number {i}"},
        "pair_of_text": (pixels, f"picture number {i}"),
        "vector": (np.arange(5.0) * (i + 1), label),
        "states": {"x0": pixels, "text": torch.full((4, 2), float(i))},
        "image_target": (pixels, pixels[:, :, :1]),
    }[kind]


class Items(Dataset):
    """A user's data set, of one kind of items."""

    def __init__(self, kind, n=12, **attributes):
        self.kind, self.n = kind, n
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return item_of(self.kind, i)


class Endless(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        yield torch.zeros(3)


class Broken(Dataset):
    """A data set with an item that cannot be read, and others of another size."""

    def __init__(self, sizes=(6, 6, 6)):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        if not self.sizes[i]:
            raise KeyError("no such picture")
        return Image.fromarray(PIXELS[i][: self.sizes[i], : self.sizes[i]])


def loaded(kind, **attributes):
    return load_data("test_datasets.Items", options={"kind": kind, **attributes})


CHW = torch.tensor(PIXELS).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["pil", "pil_pair", "hwc", "chw", "dict", "words", "one_hot",
                                  "extra", "captions", "states", "image_target"])  # fmt: skip
def test_pictures_of_every_kind_are_the_same_pictures(kind):
    data = loaded(kind)
    assert data.spec.shape == (3, 6, 8) and data.spec.levels == 256
    assert torch.equal(data.raw_items(range(12)), CHW)
    batch = next(data.batches(5, seed=0))
    assert batch.x0.shape == (5, 3, 6, 8) and batch.x0.dtype == torch.float32


def test_values_of_other_number_types():
    assert loaded("grey").spec.shape == (1, 6, 8)
    assert torch.equal(loaded("flipped").raw_items(range(12)), CHW.flip(-1))
    deep = loaded("uint16")
    assert (deep.spec.high, deep.spec.levels) == (4095, 4096)
    assert torch.equal(deep.raw_items(range(12)), CHW.float() * 16)
    for kind in ("int64", "big_endian"):
        assert torch.equal(loaded(kind).raw_items(range(12)).float(), CHW.float())
    assert loaded("bfloat16").spec.high == 1 and loaded("vector").spec.shape == (5,)


def test_labels_of_every_kind_are_classes():
    for kind in ("pil_pair", "hwc", "chw", "dict", "one_hot", "extra", "vector"):
        data = loaded(kind)
        assert data.spec.classes == ("0", "1", "2")
        labels = data.condition_items(range(12))["class_labels"]
        assert labels.tolist() == [0, 1, 2] * 4
    words = loaded("words")
    assert words.spec.classes == ("cat", "dog")
    assert words.condition_items(range(3))["class_labels"].tolist() == [0, 1, 0]
    named = loaded("words", classes=("dog", "bird", "cat"))
    assert named.spec.classes == ("dog", "bird", "cat")
    assert named.condition_items(range(3))["class_labels"].tolist() == [2, 0, 2]
    assert loaded("hwc", classes=("a", "b", "c")).spec.classes == ("a", "b", "c")
    assert loaded("hwc", targets=[5] * 11 + [1]).spec.classes == tuple("012345")
    assert "not used of an item: number 3, number 4" in "\n".join(loaded("extra").notes)
    assert "not used of an item: number 2" in "\n".join(loaded("image_target").notes)


def test_texts_are_captions_and_tensors_are_conditions():
    for kind in ("captions", "pair_of_text"):
        assert loaded(kind).captions == tuple(f"picture number {i}" for i in range(12))
    batch = next(loaded("states").batches(4, seed=0))
    assert batch.condition["text"].shape == (4, 4, 2)
    more = loaded("pil").with_condition(pooled=torch.arange(12.0)[:, None])
    batch = next(more.batches(4, seed=0))
    rows = batch.condition["pooled"][:, 0].long()
    assert torch.equal(batch.x0, more.spec.to_model(CHW[rows]))


def test_layout_and_size_are_settings_here_too():
    assert load_data("test_datasets.Items", options={"kind": "int64"}, layout="CHW").spec.shape == (
        6, 8, 3,
    )  # fmt: skip
    small = load_data("test_datasets.Items", options={"kind": "pil"}, size=4, resize="center_crop")
    assert small.spec.shape == (3, 4, 4)
    mixed = dict(options={"sizes": (6, 5, 6)}, size=(4,), resize="stretch")
    assert load_data("test_datasets.Broken", **mixed).spec.shape == (3, 4, 4)


def test_what_cannot_be_used_is_a_sentence():
    for name, options, message in (
        ("Endless", {}, "has no length or no items by number; a Dataset needs __len__"),
        ("Broken", {"sizes": (6, 0, 6)}, "item 1 of .* cannot be used: KeyError"),
        ("Broken", {"sizes": (6, 5, 6)}, "differ in shape: .*data.resize=center_crop"),
        ("Items", {"kind": "nonsense"}, "item 0 of .* cannot be used"),
        ("Items", {"kind": "pil", "n": 0}, "has no items"),
        ("Items", {}, "cannot be made"),
    ):
        with pytest.raises(UserError, match=message):
            load_data(f"test_datasets.{name}", options=options)
