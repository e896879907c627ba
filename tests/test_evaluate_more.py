"""`--mode evaluate`: by two processes, interrupted, class by class, against EDM2's statistics."""

import json
import pickle

import numpy as np
import pytest
import torch
from launching import Processes, command
from torch import nn

from score_sde import cli, evaluate
from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.evaluation.classifier import FashionFeatures
from score_sde.evaluation.statistics import load_statistics
from score_sde.nets import MLP
from score_sde.runs import drawn
from score_sde.runs.evaluate import evaluate_to_files
from score_sde.runs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_SDE_CACHE", str(tmp_path / "cache"))


class Told(nn.Module):
    """A small network that is told one of some classes."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.classes, self.net = classes, MLP(dim + classes, 32, 1)

    def forward(self, x, noise_label, class_labels):
        told = nn.functional.one_hot(class_labels, self.classes).to(x.dtype)
        return self.net(torch.cat([x, told], 1), noise_label)[:, : x.shape[1]]


def labelled(path):
    """Two classes of points, and a set without."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=2000)
    x = rng.normal(size=(2000, 2)) * 0.2 + 2.0 * y[:, None] - 1
    arrays = {"train": x, "train_labels": y, "test": x[:200], "test_labels": y[:200]}
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config = {
        "data": {"name": labelled(folder / "two.npz"), "scaling": "standard"},
        "conditioning": {"classes": True},
        "sde": {"name": "vp"},
        "net": {"name": f"{Told.__module__}.Told"},
        "training": {"steps": 60, "batch_size": 128, "lr": 5e-3, "sample_every": 0,
                     "warmup_steps": 5, "tensorboard": False},
        "sampling": {"method": "heun", "steps": 5, "batch_size": 250},
    }  # fmt: skip
    train(config, folder / "toy", device="cpu")
    return folder / "toy"


def values(folder):
    found = json.loads(next(folder.glob("report_*.json")).read_text())
    return {name: m["value"] for name, m in found["measures"].items()}


def test_two_processes_give_the_numbers_of_one(run, tmp_path):
    images = load_data("fashion_mnist", split="test").raw
    for name, part in (("mine", images[:151]), ("real", images[200:500])):
        np.savez(tmp_path / f"{name}.npz", x=part.numpy())
    pictures = ["--mode=evaluate", f"--samples={tmp_path / 'mine.npz'}", "--device=cpu",
                f"--data={tmp_path / 'real.npz'}", "--measures=frechet,kid"]  # fmt: skip
    points = ["--mode=evaluate", f"--workdir={run}", "--num_samples=301", "--device=cpu",
              "--measures=energy,frechet"]  # fmt: skip
    processes = Processes(tmp_path)
    for words, name in ((pictures, "pictures"), (points, "points")):
        out = tmp_path / name
        assert processes.run(command, 2, *words, f"--out={out}") == [0, 0], processes.output(0)
        (folder,) = run.glob("evaluation/samples_*") if name == "points" else (None,)
        if folder is not None:
            folder.rename(tmp_path / "drawn_by_two")
        assert command(*words, f"--out={out}_alone") == 0
        two, one = values(out), values(tmp_path / f"{name}_alone")
        assert one.keys() == two.keys() and len(one) == 2
        assert all(two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6) for key in one)


def test_an_interrupted_evaluation_goes_on(run, monkeypatch):
    original, asked = drawn.Run.sample_shared, []

    def interrupted(self, n, first_seed, *rest, **changes):
        asked.append((first_seed, n))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(self, n, first_seed, *rest, **changes)

    monkeypatch.setattr(drawn.Run, "sample_shared", interrupted)
    given = dict(num_samples=600, first_seed=1000, measures="energy", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        evaluate_to_files(run, **given)
    report = evaluate_to_files(run, **given)
    assert asked == [(1000, 250), (1250, 250), (1250, 250), (1500, 100)]
    assert report.protocol["n"] == 600 and report.protocol["nfe"] == 11
    again = evaluate_to_files(run, **given | {"num_samples": 550})
    assert len(asked) == 4 and again.protocol["n"] == 550  # a longer part has the shorter one


def test_numbers_class_by_class(run, tmp_path, capsys):
    report = evaluate_to_files(
        run, num_samples=200, class_labels="0,1", per_class=True, measures="energy", device="cpu"
    )
    assert set(report.classes) == {"0", "1"}
    assert report.classes["0"]["energy"].protocol["n"] == 100
    assert "class" in str(report) and json.loads(report.to_json())["classes"]["1"]["energy"]
    # A class that is drawn wrongly is the first of the table and by far the worst number.
    rng = np.random.default_rng(1)
    y = rng.integers(2, size=200)
    x = rng.normal(size=(200, 2)) + 3.0 * y[:, None]
    wrong = np.where(y[:, None] == 1, x + 2, x)
    real = rng.normal(size=(200, 2)) + 3.0 * y[:, None]
    found = evaluate(wrong, real, measures=["energy"], labels=y, reference_labels=y)
    apart = found.classes["1"]["energy"], found.classes["0"]["energy"]
    assert apart[0].value > 20 * apart[1].stderr and abs(apart[1].value) < 5 * apart[1].stderr
    rows = str(found).splitlines()
    start = next(i for i, row in enumerate(rows) if row.startswith("class"))
    assert rows[start + 1].startswith("1 ")
    with pytest.raises(UserError, match="the samples have none"):
        evaluate(wrong, real, reference_labels=y)
    with pytest.raises(UserError, match="labels must be whole numbers .200,., one for each item"):
        evaluate(wrong, real, labels=y[:5], reference_labels=y)
    np.save(tmp_path / "plain.npy", x)
    words = ["x", "--mode=evaluate", f"--samples={tmp_path / 'plain.npy'}", "--per_class"]
    assert cli.main([*words, f"--data={tmp_path / 'plain.npy'}"]) == 2
    assert "need the class of every item" in capsys.readouterr().err


def test_edm2_statistics_are_read_and_nothing_in_them_is_run(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 6))
    moments = {"mu": features.mean(0), "sigma": np.cov(features.T)}
    other = {"mu": features.mean(0) + 1, "sigma": np.eye(6)}
    path = tmp_path / "img64.pkl"
    for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps({"fid": moments, "fd_dinov2": other}, protocol))
        fid, dino = (load_statistics(path, name) for name in ("inception", "dinov2-base"))
        assert np.allclose(fid.moments.mean, moments["mu"])
        assert np.allclose(fid.moments.covariance, moments["sigma"])
        assert np.allclose(dino.moments.mean, other["mu"])
    assert load_statistics(path).facts["data"] == "img64.pkl (fid)"
    with pytest.raises(UserError, match="statistics of inception, dinov2; the features in use are"):
        load_statistics(path, "fashion-classifier")

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    class Huge:
        def __reduce__(self):
            return (np.ndarray, ((10**12,),))

    for bad in ({"fid": Hostile()}, {"fid": Huge()}, {"fid": [1]}, [3]):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(UserError):
            load_statistics(path)
    path.write_bytes(pickle.dumps({"fid": moments})[:-40])
    with pytest.raises(UserError, match="is not a file of statistics"):
        load_statistics(path)
    assert not (tmp_path / "made").exists()
    assert torch.is_tensor(fid.moments.mean)


def test_a_classifier_says_whether_samples_are_of_the_class_asked_for(capsys):
    result = evaluate_to_files(samples="fashion_mnist", data="fashion_mnist", split="test",
                               num_samples=300, measures="precision")  # fmt: skip
    images = load_data("fashion_mnist")
    extractor = FashionFeatures()
    guesses = extractor.logits(extractor(images.raw_items(range(300)))).argmax(1)
    right = (guesses == images.condition_items(range(300))["class_labels"]).double()
    assert result.agreement.value == right.mean().item() > 0.9
    assert result.agreement.stderr == pytest.approx((right.std(correction=0) / 300**0.5).item())
    assert 0.85 < result.agreement.real < 1
    assert "agreement of fashion-classifier" in capsys.readouterr().out
