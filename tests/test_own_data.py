"""The configs for data of your own: pictures of any size, tables, signals and volumes."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import train
from score_sde.data import DataError, DataSpec, load_data
from score_sde.plotting.pictures import curves_array, pairs_array, picture_of, slices_array
from score_sde.runs.load import load
from score_sde.runs.sample import sample_to_files
from score_sde.runs.train import train_as_asked
from score_sde.sampling import sampling_of

CONFIGS = Path(__file__).parent.parent / "configs"


def config(name, *variant, **changes):
    made = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*variant)
    with made.unlocked():
        for key, value in changes.items():
            section, _, field = key.partition("__")
            made[section][field] = value
    return made.to_dict()


def test_a_folder_of_mixed_pictures_trains_at_its_size(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        shape = (*rng.integers(20, 90, 2), 3) if i % 3 else tuple(rng.integers(20, 90, 2))
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(folder / f"{i}.png")
    small = config(
        "images", "32", training__steps=2, training__batch_size=4, sampling__nfe=2,
        training__sample_images=4, net__width=16, data__workers=0,
    )  # fmt: skip
    run = train_as_asked(tmp_path / "run", small, data=str(tmp_path / "pictures"), device="cpu")
    assert run.data_spec.shape == (3, 32, 32)
    assert run.data_spec.classes in ((), ("a", "b"))


@pytest.mark.parametrize("variant, size", [("32", 32), ("64", 64), ("128", 128)])
def test_every_size_builds(variant, size, monkeypatch):
    from score_sde import build
    from score_sde.data import DataSpec

    spec = DataSpec((3, size, size), 0.0, 255.0, 256)
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=cuda: found)
        values = config("images", variant)
        assert values["data"]["size"] == (size, size)
        values["net"]["width"] //= 4 if cuda else 1  # the same levels, quick to make
        build.build_net(values, spec)
        build.build_training(values), sampling_of(values.get("sampling"))


@pytest.mark.parametrize("name", ["images", "arrays"])
def test_forgotten_data_is_a_sentence_before_anything_is_made(tmp_path, name):
    with pytest.raises(DataError, match="data.name is empty: say what to train on with --data"):
        train_as_asked(tmp_path / "run", config(name), device="cpu")
    assert not (tmp_path / "run").exists()


def arrays_of(kind, folder):
    rng = np.random.default_rng(0)
    if kind == "table":
        rows = np.stack([rng.normal(5e4, 1e4, 300), rng.normal(40, 10, 300), rng.random(300)], 1)
        text = "\n".join(",".join(f"{v:.6g}" for v in row) + f",{'ab'[i % 2]}"
                         for i, row in enumerate(rows))  # fmt: skip
        (folder / "t.csv").write_text("income,age,share,class\n" + text)
        return folder / "t.csv"
    shape = {"signals": (300, 2, 64), "volumes": (20, 2, 6, 6, 6), "vectors": (300, 7)}[kind]
    np.save(folder / "x.npy", rng.normal(3, 20, shape))
    return folder / "x.npy"


@pytest.mark.parametrize("kind", ["table", "signals", "volumes", "vectors"])
def test_arrays_train_and_sample_in_their_own_units(tmp_path, kind):
    file = arrays_of(kind, tmp_path)
    small = config(
        "arrays", training__steps=2, training__batch_size=8, net__width=16, net__depth=1,
        sampling__batch_size=2, sampling__steps=2,
    )  # fmt: skip
    run = train_as_asked(tmp_path / "run", small, data=str(file), device="cpu")
    data = load_data(str(file), scaling="columns")
    assert load(tmp_path / "run", device="cpu").sample(3).x.shape == (3, *data.spec.shape)
    x = data.reference(300)
    columns = x.transpose(0, 1).flatten(1)
    assert (columns.mean(1).abs() < 1e-4).all() and ((columns.std(1) - 1).abs() < 1e-3).all()
    torch.testing.assert_close(run.data_spec.to_raw(x), data.raw, rtol=1e-5, atol=1e-4)


def test_columns_that_never_change_do_no_harm(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(f"{i},7" for i in range(30)))
    data = load_data(str(tmp_path / "t.csv"), scaling="columns")
    x = data.reference(30)
    assert abs(float(x[:, 0].std()) - 1) < 1e-5 and (x[:, 1] == 0).all()
    assert any(re.search("never change: b", note) for note in data.notes)


def test_what_has_no_test_split_is_never_called_one(tmp_path, capsys):
    from score_sde.runs.likelihood import likelihood_to_files

    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)))
    small = config(
        "arrays", training__steps=2, training__batch_size=8, net__width=16, net__depth=1,
        sampling__batch_size=2, sampling__steps=2,
    )  # fmt: skip
    train_as_asked(tmp_path / "run", small, data=str(tmp_path / "x.npy"), device="cpu")
    likelihood_to_files(tmp_path / "run", "test", 4, device="cpu")
    printed = capsys.readouterr().out
    assert "(test)" not in printed and "(all)" in printed


def test_samples_of_a_table_are_a_table_again(tmp_path):
    rows = [f"{150 + i},{0.1 * i:.2f},{'xyz'[i % 3]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("height,weight,species\n" + "\n".join(rows) + "\n")
    changes = {"data.name": str(tmp_path / "t.csv"), "net.width": 16, "net.depth": 1}
    changes |= {"training.steps": 5, "training.tensorboard": False, "sampling.batch_size": 20}
    train("arrays", tmp_path / "run", **changes)
    sample_to_files(tmp_path / "run", 7, nfe=5)
    (path,) = (tmp_path / "run").glob("samples/*/samples.csv")
    head, *lines = path.read_text().splitlines()
    assert head == "height,weight" and len(lines) == 7
    written = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    np.testing.assert_allclose(written, np.load(path.with_suffix(".npz"))["samples"], rtol=1e-5)


def test_signals_volumes_and_many_columns_have_pictures():
    """A curve goes up where its signal does; a slice is the middle one; pairs are panels."""
    ramp = torch.linspace(-1, 1, 50).expand(2, 1, 50)
    frame = curves_array(ramp, 200, 96)[:, :200]
    ink = (frame[3:-3] < 150).any(2)
    rows = np.arange(len(ink))[:, None]
    left, right = ((ink * rows)[:, c].sum() / ink[:, c].sum() for c in (20, 180))
    assert left > 75 and right < 20
    volume = torch.zeros(1, 1, 3, 4, 5)
    volume[0, 0, 1, 2, 3] = 1.0
    picture = slices_array(volume)
    assert picture.max() == 255 and (picture == 255).mean() == pytest.approx(1 / 20)
    assert pairs_array(torch.randn(50, 3)).shape == (392, 392)  # three panels of 192
    assert picture_of(torch.randn(5, 1), DataSpec((1,))) is None
