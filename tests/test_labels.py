"""Classes: each sample's score is told its own, in any batch, on any number of processes."""

import json
import math

import numpy as np
import pytest
import torch
from foreign import diffusers_folder
from golden_cases import Case, gap
from launching import Processes
from test_run import command
from torch import nn

from score_sde import (
    VPSDE,
    ScoreModel,
    cli,
    distributed,
    import_checkpoint,
    load,
    log_likelihood,
    sample,
)
from score_sde.conditioning.classes import LabelError, class_labels_of, drawn_labels, needs_labels
from score_sde.likelihood import continuous_bound, decode, dequantize, encode, variational_bound
from score_sde.nets import UNet
from score_sde.runs import calibrate as calibration
from score_sde.sampling import Recipe
from score_sde.scores import ScoreError

pytestmark = pytest.mark.usefixtures("one_thread")


class Centres(nn.Module):
    """eps for data that are N(centre of the class, 0.3^2 I) in the plane: exact, and learned v."""

    classes = 3

    def __init__(self, sde):
        super().__init__()
        self.sde = sde
        self.centres = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))

    def forward(self, x, label, class_labels=None):
        t = (label / 999).double()
        alpha, sigma = (f(t)[:, None].to(x.dtype) for f in (self.sde.alpha, self.sde.sigma))
        means = self.centres.mean(0) if class_labels is None else self.centres[class_labels]
        eps = sigma * (x - alpha * means) / (0.09 * alpha**2 + sigma**2)
        return torch.cat([eps, torch.zeros_like(eps)], 1)


@pytest.fixture
def model():
    sde = VPSDE()
    return ScoreModel(Centres(sde), sde, learned_variance=True).requires_grad_(False)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("adams", {"nfe": 10, "data_std": 1.0}),
        ("ancestral", {"steps": 20, "variance": "learned"}),
        ("pc", {"steps": 10}),
        ("heun", {"steps": 10}),
        ("dpmpp_3m", {"steps": 10}),
        ("rk45", {}),
        ("adaptive_sde", {}),
    ],
)
def test_a_sample_depends_on_its_seed_and_class_alone(model, method, settings):
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    given = {"method": method, **settings}
    seeds = range(7)
    whole = sample(model.sde, model.bind(class_labels=labels), (7, 2), seeds=seeds, **given)
    parts = sample(
        model.sde, model.bind(class_labels=labels), (7, 2), seeds=seeds, batch_size=3, **given
    )
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    for i in range(7):
        alone = model.bind(class_labels=labels[i : i + 1])
        one = sample(model.sde, alone, (1, 2), seeds=[i], **given)
        torch.testing.assert_close(one[0], whole[i], rtol=1e-5, atol=1e-5)
    assert float((whole - model.net.centres[labels]).norm(dim=1).max()) < 1.5  # their own centre


def test_the_evaluations_of_all_parts_are_counted(model):
    labels = torch.tensor([0, 1, 2, 1])
    result = sample(model.sde, model.bind(class_labels=labels), (4, 2), method="heun", steps=5,
                    batch_size=2, return_info=True)  # fmt: skip
    assert result.nfe == 11


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
def test_likelihoods_are_those_of_the_class(model, solver):
    """Of 40 samples, so that the second solve of an adaptive one takes two of them."""
    labels = torch.arange(40) % 3
    x = model.net.centres[labels] + 0.3 * torch.randn(40, 2, generator=torch.manual_seed(0))
    score = model.bind(class_labels=labels)
    found = log_likelihood(model.sde, score, x, solver=solver, batch_size=36)
    away = (x - model.net.centres[labels]).double().square().sum(1)
    want = -away / (2 * 0.09) - math.log(2 * math.pi * 0.09)
    torch.testing.assert_close(found.nats, want, rtol=0, atol=2e-3)
    if solver == "dopri5":
        assert found.solver_error[:2].isfinite().all()


def test_bounds_and_latents_are_those_of_the_class(model):
    labels = torch.tensor([0, 1, 2, 2, 1])
    x = model.net.centres[labels] + 0.2
    score, seeds = model.bind(class_labels=labels), range(5)
    for bound, settings in (
        (variational_bound, {"steps": 20, "variance": "learned"}),
        (continuous_bound, {"points": 16}),
    ):
        whole = bound(model.sde, score, x, seeds=seeds, **settings).nats
        parts = bound(model.sde, score, x, seeds=seeds, batch_size=2, **settings).nats
        torch.testing.assert_close(parts, whole)
        wrong = model.bind(class_labels=labels.roll(1))
        assert (bound(model.sde, wrong, x, seeds=seeds, **settings).nats > whole + 1)[:3].all()
    latents = encode(model.sde, score, x, data_std=0.3, batch_size=2)
    back = decode(model.sde, score, latents, data_std=0.3, batch_size=3)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)


def test_scores_of_a_wrong_number_of_samples_are_refused(model):
    with pytest.raises(ScoreError, match="2 rows of class_labels do not fit 3 samples"):
        model.bind(class_labels=torch.tensor([0, 1]))(torch.zeros(3, 2), torch.tensor(0.5))


def test_what_class_labels_may_be(model):
    net = model.net
    for given, want in (
        (2, [2, 2, 2, 2]),
        ([0, 2, 1, 1], [0, 2, 1, 1]),
        (np.array([0, 2, 1, 1]), [0, 2, 1, 1]),
        (torch.tensor([0, 2, 1, 1]), [0, 2, 1, 1]),
        (torch.tensor(1), [1, 1, 1, 1]),
        (np.int64(1), [1, 1, 1, 1]),
        ("1", [1, 1, 1, 1]),
        ("0, 2", [0, 2, 0, 2]),
        ("all", [0, 1, 2, 0]),
    ):
        assert class_labels_of(net, given, 4).tolist() == want
    assert class_labels_of(net, None, 4) is None
    for given, message in (
        (3, "class 3 does not exist; there are 0 to 2"),
        (-1, "class -1 does not exist"),
        ([0, 1], "2 class labels do not fit 4 samples"),
        ("0,1,2,0,1", "5 class labels are more than 4 samples"),
        ([0, 1, 2, 1.0], "class 1.0 does not exist"),
        (1.5, "class 1.5 does not exist; there are 0 to 2"),
        (True, "class True does not exist"),
        (torch.tensor([0.0, 1.0, 1.0, 0.0]), "class 0.0 does not exist"),
        ("two", "'two' is not a class from 0 to 2, several with commas .* or all"),
        ("1,", "'' is not a class"),
    ):
        with pytest.raises(LabelError, match=message):
            class_labels_of(net, given, 4)
    with pytest.raises(LabelError, match="knows no classes"):
        class_labels_of(nn.Linear(1, 1), 0, 4)


def test_drawn_classes_are_those_of_the_seed_and_equally_likely():
    whole = drawn_labels(10, range(20_000))
    assert torch.equal(drawn_labels(10, range(500, 520)), whole[500:520])
    counts = whole.bincount(minlength=10)
    assert len(counts) == 10 and int((counts - 2000).abs().max()) < 4 * math.sqrt(1800)


def test_a_network_trained_without_classes_at_times_goes_without():
    torch.manual_seed(0)
    small = dict(width=8, multipliers=(1,), blocks=1, attention=(), middle=("block",))
    net = UNet(1, (8, 8), **small, group_channels=4, classes=3, class_dropout=0.25)
    assert not needs_labels(net) and needs_labels(UNet(1, (8, 8), **small, classes=3))
    x, label, classes = torch.randn(9, 1, 8, 8), torch.zeros(9), torch.zeros(9).long()
    with torch.no_grad():  # what is dropped is the trainer's business
        assert torch.equal(net.train()(x, label, class_labels=classes),
                           net.eval()(x, label, class_labels=classes))  # fmt: skip


# Runs --------------------------------------------------------------------------------------------


def labelled_case():
    """A U-Net of diffusers with ten classes; what class they are of makes a difference."""
    case = Case("diffusers_unet_defaults")
    case.settings = {**case.settings, "num_class_embeds": 10}
    width = 4 * case.settings["block_out_channels"][0]
    rows = torch.randn(10, width, generator=torch.Generator().manual_seed(1))
    return case, case.weights() | {"class_embedding.weight": 3 * rows}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    case, weights = labelled_case()
    hub = diffusers_folder(case, folder / "hub", weights=weights)
    import_checkpoint(hub, folder / "run", device="cpu")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "x.npz", test=images, y=np.array([0, 9, 8, 7, 7, 1]))
    return folder / "run"


def test_sampling_from_the_command_line_records_the_classes(labelled, tmp_path, capsys):
    base = ["--workdir", str(labelled), "--mode=sample", "--sampler=adams", "--nfe=4",
            "--device=cpu", "--batch_size=3"]  # fmt: skip
    for given, n, want in (("7", 4, [7] * 4), ("0,1,2", 5, [0, 1, 2, 0, 1]),
                           ("all", 12, [*range(10), 0, 1])):  # fmt: skip
        out = tmp_path / given
        flags = [f"--class_labels={given}", f"--num_samples={n}", f"--out={out}"]
        assert command(*base, *flags) == 0
        saved = np.load(out / "samples.npz")
        assert saved["class_labels"].tolist() == want
        assert json.loads((out / "settings.json").read_text())["class_labels"] == want
        said = "class_labels=7" if given == "7" else "class_labels=one each"
        assert said in capsys.readouterr().out
    run = load(labelled, device="cpu")
    alone = run.sample(1, 4, method="adams", nfe=4, class_labels=1).x
    pixels = run.data_spec.to_uint8(alone)[0].permute(1, 2, 0).numpy().astype(int)
    again = np.load(tmp_path / "0,1,2" / "samples.npz")["samples"][4].astype(int)
    assert np.abs(again - pixels).max() <= 1
    other = run.sample(1, 4, method="adams", nfe=4, class_labels=2).x
    assert float((other - alone).abs().max()) > 0.05


def test_without_class_labels_each_seed_draws_one(labelled, tmp_path):
    base = ["--workdir", str(labelled), "--mode=sample", "--sampler=heun", "--steps=1",
            "--device=cpu"]  # fmt: skip
    assert command(*base, "--num_samples=5", f"--out={tmp_path / 'a'}") == 0
    assert command(*base, "--num_samples=2", "--first_seed=3", f"--out={tmp_path / 'b'}") == 0
    a, b = (np.load(tmp_path / name / "samples.npz") for name in "ab")
    assert a["class_labels"].tolist() == drawn_labels(10, range(5)).tolist()
    assert np.array_equal(a["class_labels"][3:], b["class_labels"])
    assert np.abs(a["samples"][3:].astype(int) - b["samples"].astype(int)).max() <= 1


def sample_classes(workdir):
    with distributed.processes(torch.device("cpu")):
        run = load(workdir, device="cpu")
        x = [run.sample_shared(n, method="heun", steps=1, class_labels=labels)
             for n, labels in ((3, [5, 0, 9]), (1, 4), (3, None))]  # fmt: skip
        if distributed.is_writer():
            torch.save([(r.x, r.settings["class_labels"]) for r in x],
                       workdir / f"{distributed.size()}.pt")  # fmt: skip


def test_two_processes_give_each_sample_its_class(labelled, tmp_path):
    assert Processes(tmp_path).run(sample_classes, 2, labelled) == [0, 0]
    sample_classes(labelled)
    for (one, said), (two, again) in zip(*(torch.load(labelled / f"{n}.pt") for n in (1, 2)),
                                         strict=True):  # fmt: skip
        assert gap(two, one) < 1e-4
        assert said == again


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class_labels=10"], "class 10 does not exist; there are 0 to 9."),
        (["--class_labels=-1"], "class -1 does not exist; there are 0 to 9."),
        (["--class_labels=cat"], "'cat' is not a class from 0 to 9, several with commas"),
        (["--class_labels=1.5"], "'1.5' is not a class from 0 to 9"),
        (["--class_labels=0,1,2"], "3 class labels are more than 2 samples"),
        (["--class_labels=data"], "'data' is not a class from 0 to 9"),
        (["--mode=likelihood"], "imported without its data: say which with --data"),
        (["--mode=likelihood", "--data={x}"], "always told the class: give class_labels, data"),
        (["--mode=interpolate", "--data={x}"], "give class_labels, a class for all"),
        (["--mode=encode", "--data={x}", "--class_labels=data"], "have 5 classes, this network"),
    ],
)
def test_bad_class_labels_are_explained(labelled, flags, message, capsys, tmp_path):
    data = tmp_path / "five.npz"
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    np.savez(data, test=images, y=np.arange(5))
    flags = [flag.replace("{x}", str(data)) for flag in flags]
    many = "--pairs=1" if "--mode=interpolate" in flags else "--num_samples=2"
    base = ["--workdir", str(labelled), "--mode=sample", many, "--device=cpu"]
    assert command(*base, *flags, f"--out={tmp_path / 'out'}") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and len(said) < 300
    assert not (tmp_path / "out").exists()


def test_a_network_without_classes_takes_none(tmp_path, capsys):
    hub = diffusers_folder(Case("diffusers_unet_defaults"), tmp_path / "hub")
    import_checkpoint(hub, tmp_path / "run", device="cpu")
    base = ["--workdir", str(tmp_path / "run"), "--mode=sample", "--num_samples=2"]
    assert command(*base, "--class_labels=0", "--device=cpu") == 2
    assert "error: this network knows no classes: drop class_labels." in capsys.readouterr().err


def test_likelihood_under_the_classes_of_the_data(labelled, tmp_path):
    data = labelled.parent / "x.npz"
    flags = ["--workdir", str(labelled), "--mode=likelihood", f"--data={data}", "--device=cpu",
             "--nfe=10", "--probes=1", "--batch_size=2", "--num_samples=3"]  # fmt: skip
    classes = {"data": [0, 9, 8], "0,9": [0, 9, 0]}
    found = {}
    run = load(labelled, device="cpu")
    raw = torch.from_numpy(np.load(data)["test"][:3]).permute(0, 3, 1, 2)
    x = dequantize(run.data_spec.to_model(raw), 256, 0.0, 1.0, range(3))
    for given, want in classes.items():
        out = tmp_path / given
        assert cli.main(["score-sde", *flags, f"--class_labels={given}", f"--out={out}"]) == 0
        found[given] = np.load(out / "likelihood.npz")
        assert found[given]["class_labels"].tolist() == want
        protocol = json.loads((out / "likelihood.json").read_text())["protocol"]
        assert protocol["class_labels"] == given and protocol["data"] == str(data)
        score = run.score.bind(class_labels=torch.tensor(want))
        nats = log_likelihood(run.sde, score, x, nfe=10, probes=1, seeds=range(3), prior="sde",
                              truncation="bound", data_std=run.data_std).nats  # fmt: skip
        np.testing.assert_allclose(found[given]["nats"], nats, rtol=1e-4)
    apart = found["data"]["nats"] - found["0,9"]["nats"]
    assert np.abs(apart[:2]).max() < 1e-3 * abs(apart[2])


def test_encode_and_interpolate_under_classes(labelled, tmp_path):
    flags = ["--workdir", str(labelled), f"--data={labelled.parent / 'x.npz'}", "--device=cpu",
             "--nfe=8"]  # fmt: skip
    two = ["--mode=encode", "--num_samples=2", "--class_labels=data"]
    assert command(*flags, *two, f"--out={tmp_path / 'e'}") == 0
    saved = np.load(tmp_path / "e" / "latents.npz")
    assert saved["class_labels"].tolist() == [0, 9]
    run = load(labelled, device="cpu")
    x = torch.from_numpy(saved["items"])
    want = [encode(run.sde, run.score.bind(class_labels=torch.tensor([c])), x[i : i + 1], nfe=8,
                   data_std=run.data_std) for i, c in enumerate([0, 9])]  # fmt: skip
    assert gap(torch.from_numpy(saved["latents"]), torch.cat(want)) < 1e-4
    out = tmp_path / "i"
    assert (
        command(*flags, "--mode=interpolate", "--pairs=2", "--class_labels=3,5", f"--out={out}")
        == 0
    )
    saved = np.load(out / "interpolation.npz")
    assert saved["class_labels"].tolist() == [3, 5] and saved["images"].shape[:2] == (2, 9)


def test_a_grid_is_calibrated_to_drawn_classes(labelled, tmp_path, monkeypatch):
    asked = []

    def recorded(sde, score, shape, nfe, **settings):
        asked.append((score, shape))
        return Recipe((1.0, 0.5), 2, 0.25, str(sde))

    monkeypatch.setattr(calibration, "calibrate", recorded)
    calibration.calibrate_run(labelled, recipe=tmp_path / "recipe.json", device="cpu")
    score, shape = asked[0]
    assert torch.equal(score.condition["class_labels"], drawn_labels(10, range(shape[0])))
