"""Classifier guidance: Bayes' rule with an exact classifier, a learned one, and the mode."""

import json

import numpy as np
import pytest
import torch
from test_run import command
from torch import nn

from score_sde import VPSDE, FlowSDE, GaussianMixture, ScoreModel, guide, load, sample
from score_sde.checks import UserError
from score_sde.losses import ScoreMatching
from score_sde.models import NoisyClassifier
from score_sde.nets import MLP, ImageClassifier, VectorClassifier
from score_sde.runs.classifier import load_classifier, train_classifier
from score_sde.runs.configs import load_config
from score_sde.scores import take
from score_sde.training import Trainer, TrainingSettings
from score_sde.training.classification import Classification

pytestmark = pytest.mark.usefixtures("one_thread")
DATA = GaussianMixture(
    [0.4, 0.3, 0.3], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], [0.3, 0.2, 0.5], [0, 1, 1]
)
T = torch.tensor(0.4, dtype=torch.float64)


class Posterior(nn.Module):
    """log p_t(x, class) of the mixture, from what a classifier is shown: scaled x and the label."""

    classes = 2

    def __init__(self, sde):
        super().__init__()
        self.sde, self.calls = sde, []

    def forward(self, x, noise_label):
        self.calls.append(len(x))
        t = self.sde.time_of_log_snr(-2 * noise_label)[0]
        x = x * ((self.sde.alpha(t) * 1.5) ** 2 + self.sde.sigma(t) ** 2).sqrt()
        every = torch.arange(2)
        labels = [every[k].expand(len(x)) for k in every]
        joint = [DATA.log_prob(x, self.sde, t, y) for y in labels]
        return torch.stack(joint, 1) + torch.tensor([0.4, 0.6], dtype=x.dtype).log()


class Wide(Posterior):
    """In float64: a network's inputs have the dtype of its parameters."""

    def __init__(self, sde):
        super().__init__(sde)
        self.nothing = nn.Parameter(torch.zeros((), dtype=torch.float64))


def states(n=6):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE()], ids=lambda s: type(s).__name__)
def test_an_exact_classifier_makes_the_exact_conditional_score(sde):
    classifier = NoisyClassifier(Wide(sde), sde, data_std=1.5, time_scale=1.0)
    score, x, labels = DATA.score(sde), states(), torch.tensor([0, 1, 1, 0, 1, 0])
    u, c = score.bind(), score.bind(class_labels=labels)
    told = classifier.told(u, labels)
    torch.testing.assert_close(told(x, T), c(x, T), rtol=1e-7, atol=1e-9)
    times = torch.full((6,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(told(x, times), c(x, T), rtol=1e-7, atol=1e-9)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(take(told, rows)(x[rows], T), c(x, T)[rows], rtol=1e-7, atol=1e-9)
    for options in ({}, {"rule": "apg"}, {"interval": (-2.0, 2.0)}, {"rescale": 0.5}):
        guided = guide(told, u, 3.0, **options)
        torch.testing.assert_close(
            guided(x, T), guide(c, u, 3.0, **options)(x, T), rtol=1e-6, atol=1e-8
        )
    given = {"method": "dpmpp_2m_sde", "steps": 8, "dtype": torch.float64, "seeds": range(6)}
    got = sample(sde, guide(told, u, 2.0), (6, 2), batch_size=4, **given)
    want = sample(sde, guide(c, u, 2.0), (6, 2), **given)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_a_guided_step_asks_score_and_classifier_once():
    """ADM's formula: score + w grad log p(y | x), from n rows of each network."""
    torch.manual_seed(0)
    sde, labels, x = VPSDE(), torch.tensor([0, 1, 1]), states(3).float()
    model, rows = ScoreModel(MLP(2, width=16, depth=1), sde), []
    nn.init.normal_(model.net.last.weight)
    net = VectorClassifier(2, 2, width=16, depth=1)
    for network in (model.net, net):
        network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    classifier, u = NoisyClassifier(net, sde), model.bind()
    told = classifier.told(u, labels)
    with torch.no_grad():
        got = guide(told, u, 2.5)(x, T.float())
    assert rows == [3, 3] and not got.requires_grad
    shown = x.requires_grad_()
    log_probs = classifier.log_probs(shown, T.float())
    gradient = torch.autograd.grad(log_probs[[0, 1, 2], labels].sum(), shown)[0]
    torch.testing.assert_close(got, model(x, T.float()) + 2.5 * gradient)
    # Through a score that is differentiated in turn, as restoration does.
    (second,) = torch.autograd.grad(told(shown, T.float()).sum(), shown)
    assert torch.isfinite(second).all() and float(second.abs().max()) > 0


def test_a_learned_gradient_nears_the_exact_one():
    """Two Gaussians of one variance: log-odds are linear in x, at a slope that t decides."""
    torch.manual_seed(0)
    sde = VPSDE()
    data = GaussianMixture([0.5, 0.5], [[1.2, 0.0], [-1.2, 0.0]], 0.4, [0, 1])
    model = NoisyClassifier(VectorClassifier(2, 2, width=32, depth=2), sde, data_std=1.1)
    settings = TrainingSettings(batch_size=256, steps=200, lr=1e-2, warmup_steps=10, decay=0.7)
    objective = Classification(ScoreMatching(stratified=True))
    trainer = Trainer(model, objective, settings)
    drawn = torch.Generator().manual_seed(0)
    for _ in range(200):
        y = torch.randint(2, (256,), generator=drawn)
        x0 = 0.4**0.5 * torch.randn(256, 2, generator=drawn)
        x0[:, 0] += 1.2 - 2.4 * y
        trainer.update(x0, class_labels=y)
    model.eval()
    exact, labels = data.score(sde), torch.arange(512) % 2
    for t in (0.1, 0.3, 0.6):
        t = torch.tensor(t, dtype=torch.float64)
        x0 = torch.cat([data.of_class(k).sample(256, seed=3 + k) for k in (0, 1)])
        x = sde.alpha(t) * x0 + sde.sigma(t) * states(512)
        want = exact.bind(class_labels=labels)(x, t) - exact(x, t)
        got = model.gradient(x.float(), t.float(), labels).double()
        error = float((got - want).square().sum() / want.square().sum()) ** 0.5
        assert error < 0.35, (float(t), error)
        mine = model.log_probs(x.float(), t.float()).argmax(1)
        assert float((mine == (x[:, 0] < 0)).double().mean()) > 0.97


def test_what_a_classifier_cannot_be_told_is_said():
    sde = VPSDE()
    classifier = NoisyClassifier(VectorClassifier(2, 3), sde)
    score = DATA.score(sde)
    with pytest.raises(
        UserError, match="lie in 0 to 2, the classes of the classifier .got .0, 3.."
    ):
        classifier.told(score, torch.tensor([0, 3]))
    with pytest.raises(UserError, match="must share the process"):
        classifier.told(DATA.score(FlowSDE()), torch.tensor([0]))
    with pytest.raises(UserError, match="images of 10 x 10 are not divisible by 4"):
        ImageClassifier(1, (10, 10), 3, multipliers=(1, 2, 2))
    with pytest.raises(UserError, match="states .B, 1, 8, 8.; got .2, 1, 4, 4."):
        ImageClassifier(1, (8, 8), 3)(torch.zeros(2, 1, 4, 4), torch.zeros(2))


CONFIG = {
    "training.steps": 6, "training.batch_size": 16, "training.minutes": 0.0, "net.width": 8,
    "training.warmup_steps": 1, "training.log_every": 2, "training.tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    flags = [f"--config.{key}={value}" for key, value in CONFIG.items()]
    asked = ["--config=classifier_fashion", "--mode=train_classifier", "--device=cpu"]
    assert command(*asked, f"--workdir={folder / 'c'}", *flags) == 0
    small = CONFIG | {"net.attention": "()", "net.heads": 1, "net.width": 16, "training.steps": 2}
    small |= {"training.sample_every": 0, "training.sample_images": 4, "sampling.nfe": 2}
    asked = ["--config=vp_fashion", "--mode=train", "--device=cpu"]
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    assert command(*asked, f"--workdir={folder / 'u'}", *flags) == 0
    asked = ["--config=vp_fashion:classes", "--mode=train", "--device=cpu"]
    assert command(*asked, f"--workdir={folder / 'k'}", *flags) == 0
    return folder


def test_a_trained_classifier_leads_the_samples_of_a_run(trained, tmp_path):
    lines = [json.loads(line) for line in (trained / "c" / "log.jsonl").read_text().splitlines()]
    shares = [v for k, v in lines[-1].items() if k.startswith("wrong/")]
    assert shares and all(0 <= v <= 1 for v in shares)
    assert 1 < lines[-1]["loss"] < 4  # near log 10 = 2.3 nats
    base = ["--mode=sample", f"--workdir={trained / 'u'}", "--device=cpu", "--num_samples=3"]
    base += [f"--classifier={trained / 'c'}", "--nfe=3"]
    out = tmp_path / "out"
    assert command(*base, "--class_labels=Bag,Sneaker", "--guidance=2", f"--out={out}") == 0
    found = np.load(out / "samples.npz")
    assert found["class_labels"].tolist() == [8, 7, 8]
    run, classifier = (
        load(trained / "u", device="cpu"),
        load_classifier(trained / "c", device="cpu"),
    )
    u = run.score.bind()
    told = classifier.model.told(u, torch.tensor([8, 7, 8]))
    want = sample(run.sde, guide(told, u, 2.0), (3, 1, 28, 28), method="dpmpp_2m_sde", nfe=3,
                  grid="karras", seeds=range(3))  # fmt: skip
    got = run.sample(3, class_labels="Bag,Sneaker", classifier=classifier, guidance=2.0, nfe=3).x
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)  # the network is in bfloat16
    pixels = run.data_spec.to_uint8(got)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found["samples"][0].astype(int) - pixels).max() <= 8
    plain = run.sample(3, nfe=3).x
    assert not torch.equal(run.sample(3, class_labels=8, classifier=classifier, nfe=3).x, plain)
    both = load(trained / "k", device="cpu")  # a conditional score can be led as well (ADM-G)
    led = both.sample(2, class_labels=3, classifier=classifier, guidance=2.0, nfe=3)
    assert led.settings["guidance"] == 2.0 and led.settings["class_labels"] == 3


def test_a_classifier_resumes_exactly(tmp_path):
    config = load_config("classifier_fashion").to_dict()
    for key, value in CONFIG.items():
        section, name = key.split(".")
        config[section][name] = value
    config["training"] |= {"save_every": 3, "keep": 9}
    train_classifier(config, tmp_path / "r", device="cpu")
    whole = load_classifier(tmp_path / "r", weights="model", device="cpu").model.net.state_dict()
    for file in (tmp_path / "r" / "checkpoints" / "step_00000006").iterdir():
        file.unlink()
    (tmp_path / "r" / "checkpoints" / "step_00000006").rmdir()
    again = train_classifier(config, tmp_path / "r", resume="yes", device="cpu")
    assert again.step == 6 and "Classifier" in repr(again)
    again = load_classifier(tmp_path / "r", weights="model", device="cpu").model.net.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode=sample", "--workdir={u}", "--classifier={c}"],
         "give class_labels, of t-shirt"),
        (["--mode=sample", "--workdir={u}", "--classifier={c}", "--class_labels=Bga"],
         "Did you mean 'bag'"),
        (["--mode=sample", "--workdir={u}", "--classifier={c}", "--class_labels=12"],
         "class 12 does not exist; there are 0 to 9 .t-shirt"),
        (["--mode=sample", "--workdir={u}", "--classifier={u}", "--class_labels=1"],
         "net.name=unet makes scores, not classes"),
        (["--mode=sample", "--workdir={c}"], "is a classifier of noisy samples"),
        (["--mode=sample", "--workdir={u}", "--classifier={c}", "--class_labels=1",
          "--against={k}", "--guidance=2"], "a classifier leads by itself"),
        (["--mode=sample", "--workdir={u}", "--class_labels=1"], "knows no classes"),
        (["--mode=sample", "--workdir={k}", "--guidance=2"], "give class_labels, of t-shirt"),
        (["--mode=train_classifier", "--config=vp_fashion", "--workdir={new}"],
         "net.name one of image_classifier"),
        (["--mode=train_classifier", "--config=classifier_fashion", "--workdir={new}",
          "--config.conditioning.classes=False"], "conditioning.classes=True"),
        (["--mode=train_classifier", "--config=classifier_fashion", "--workdir={new}",
          "--data=shapes"], "data with classes; shapes has none"),
        (["--mode=train", "--config=classifier_fashion", "--workdir={new}"],
         "train it with --mode train_classifier"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence(trained, tmp_path, capsys, words, message):
    import re

    places = {name: str(trained / name) for name in "cuk"} | {"new": str(tmp_path / "new")}
    words = [word.format(**places) for word in words]
    more = ["--num_samples=2", f"--out={tmp_path / 'out'}"] if "sample" in words[0] else []
    assert command(*words, *more, "--device=cpu") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and re.search(message, said), said
    assert not (tmp_path / "new").exists() and not (tmp_path / "out").exists()
