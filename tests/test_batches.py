"""Batches with conditions: rows that belong together stay together, however they are divided."""

from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset

from score_sde.data import DataError, DataSpec
from score_sde.data.sources import ArrayData, StreamData, item_parts

N, SPEC = 23, DataSpec((3, 4, 4), -1.0, 1.0, classes=("a", "b", "c", "d", "e"))


def items():
    """Item i and everything known of it hold the number i, left of right."""
    numbers = torch.arange(N, dtype=torch.float32)
    across = torch.arange(4.0) / 1000
    return {
        "x0": numbers[:, None, None, None] / 100 + across.expand(N, 3, 4, 4),
        "class_labels": (numbers % 5).long(),
        "pooled": numbers[:, None].expand(N, 6) * 2,
        "text": numbers[:, None, None].expand(N, 7, 2) * 3,
        "low": numbers[:, None, None, None] + torch.arange(2.0).expand(N, 3, 2, 2) / 10,
    }


@dataclass
class Described(Dataset):
    """A user's data set whose items are dictionaries."""

    form: str = "dict"

    def __len__(self):
        return N

    def __getitem__(self, i):
        item = {name: value[i] for name, value in items().items()}
        if self.form == "dict":
            return {"label": int(item.pop("class_labels")), **item}
        return item["x0"] if self.form == "value" else (item["x0"].numpy(), i % 5)


def arrays(flip=True):
    known = items()
    return ArrayData(known.pop("x0"), known, SPEC, flip)


def assert_equal(one, two):
    assert torch.equal(one.x0, two.x0) and one.condition.keys() == two.condition.keys()
    for name, value in one.condition.items():
        assert torch.equal(value, two.condition[name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_and_arrays_give_the_same_batches_with_all_conditions(workers):
    stream = StreamData(Described(), SPEC, flip=True, workers=workers)
    for one, two in islice(zip(arrays().batches(7, 3), stream.batches(7, 3), strict=False), 5):
        assert_equal(one, two)
        assert set(two.condition) == {"class_labels", "pooled", "text", "low"}


def test_rows_of_processes_and_resumed_batches_are_those_of_the_whole():
    whole = list(islice(arrays().batches(7, 3), 6))
    for data in (arrays(), StreamData(Described(), SPEC, flip=True)):
        parts = [data.batches(7, 3, 2, rows=rows) for rows in (range(0, 3), range(3, 7))]
        for batch in whole[2:]:
            first, second = (next(part) for part in parts)
            assert torch.equal(torch.cat([first.x0, second.x0]), batch.x0)
            for name, value in batch.condition.items():
                assert torch.equal(
                    torch.cat([first.condition[name], second.condition[name]]), value
                )


def test_conditions_stay_with_their_items_and_pictures_are_mirrored_with_them():
    mirrored = 0
    for x0, known in islice(arrays().batches(7, 0), 5):
        number = (x0[:, 0, 0].min(-1).values * 100).round()
        assert torch.equal(known["class_labels"], (number % 5).long())
        assert torch.equal(known["pooled"][:, 0], 2 * number)
        assert torch.equal(known["text"][:, 0, 0], 3 * number)
        left = x0[:, 0, 0, 0] < x0[:, 0, 0, 3]
        assert torch.equal(known["low"][:, 0, 0, 0] < known["low"][:, 0, 0, 1], left)
        mirrored += int((~left).sum())
    assert 5 < mirrored < 30


def test_items_may_be_a_value_a_pair_or_a_dictionary():
    for form, names in (("value", set()), ("pair", {"class_labels"})):
        data = StreamData(Described(form), SPEC)
        assert set(next(data.batches(4, 0)).condition) == names
        found = data.condition_items(range(2, 5))
        assert set(found) == names
        assert all(torch.equal(v, torch.tensor([2, 3, 4])) for v in found.values())
    assert item_parts({"image": 1, "class_labels": 2, "pooled": 3}) == (
        1, {"class_labels": 2, "pooled": 3},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"keys \['picture', 'label'\]; its value must be x0"):
        item_parts({"picture": 1, "label": 2})
    found = arrays().condition_items(range(2, 5))
    assert torch.equal(found["class_labels"], torch.tensor([2, 3, 4]))


def test_a_condition_of_another_length_is_an_error():
    with pytest.raises(DataError, match="22 rows of class_labels do not fit 23"):
        ArrayData(items()["x0"], {"class_labels": torch.zeros(N - 1)}, SPEC)
