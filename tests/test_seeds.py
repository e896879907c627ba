"""A seed counts with all of its 64 bits, wherever one is taken: 1 and 1 + 2^32 are two seeds."""

import ast
from pathlib import Path

import pytest
import torch

import score_sde
from score_sde import VPSDE, Gaussian, GaussianMixture, calibrate, sample, verify
from score_sde.data.batches import batch_indices
from score_sde.data.shapes import draw_shapes
from score_sde.evaluation.distances import sliced_w2
from score_sde.evaluation.jackknife import block_of
from score_sde.evaluation.measures import shuffled
from score_sde.noise import BrownianNoise, SeededNoise, StepRandomness, seed_torch

SDE, DATA = VPSDE(), Gaussian([0.0, 0.0], 0.25)
MIXTURE = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.1, labels=[0, 1])
X = DATA.sample(64, seed=5).float()


def of_torch(seed):
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed)
        return torch.rand(3), torch.nn.Linear(2, 2).weight.detach()


def of_calibration(seed):
    return calibrate(SDE, DATA.score(SDE), (32, 2), 4, data_std=0.5, seed=seed).error


DRAWN = {
    "the global generator": of_torch,
    "samples": lambda seed: sample(SDE, DATA.score(SDE), shape=(1, 2), steps=2, seeds=[seed]),
    "noise": lambda seed: SeededNoise([seed], (3,)).draw(),
    "a Brownian path": lambda seed: BrownianNoise([seed], (3,), sde=SDE).draw(0.5, 0.4),
    "an update": lambda seed: StepRandomness(seed, 3, 4).noise(torch.zeros(4, 2), range(4)),
    "the order of data": lambda seed: batch_indices(100, 8, seed, 0),
    "a mixture": lambda seed: MIXTURE.sample(3, seed=seed),
    "a tilted law": lambda seed: MIXTURE.sample_tilted(1, 2.0, 3, seed=seed),
    "shapes": lambda seed: draw_shapes(3, [("red", "circle")], seed)[0],
    "an order": lambda seed: shuffled(50, seed),
    "blocks": lambda seed: block_of(50, 10, seed),
    "directions": lambda seed: sliced_w2(X[:32], block_of(32, 4), X[32:], 5, seed).value,
    "calibration": of_calibration,
    "verification": lambda seed: str(verify(SDE, "ddim", steps=[3], seed=seed)),
}


def as_text(value):
    return repr(value.tolist() if hasattr(value, "tolist") else value)


@pytest.mark.parametrize("name", DRAWN)
def test_all_bits_of_a_seed_count(name):
    one, again, other = (as_text(DRAWN[name](seed)) for seed in (1, 1, 1 + 2**32))
    assert one == again != other


DRAWS = {
    "rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "rand_like",
    "randn_like", "randint_like", "manual_seed",
}  # fmt: skip
STREAMS = {"default_rng", "Generator", "Philox", "SeedSequence"}
SEEDED = {
    "losses.py",  # within `StepRandomness.for_times`; noise is given
    "training/map_matching.py",  # as losses
    "training/moments.py",  # within `StepRandomness.for_layers`
    "checks/memory.py",  # names what makes tensors
    "evaluation/c2st.py",
    "evaluation/classifier.py",
}
"""Files that may draw from the global generator, which `noise` has seeded; networks may too."""


def unseeded(tree):
    """Lines that draw from a global generator, of torch or numpy, and imports of `random`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(name.name == "random" for name in node.names):
            yield node.lineno
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, given = node.func.attr, {word.arg for word in node.keywords}
        of = ast.unparse(node.func.value)
        if of == "torch" and name in DRAWS and "generator" not in given:
            yield node.lineno
        if of in ("np.random", "numpy.random") and name not in STREAMS:
            yield node.lineno


def test_nothing_draws_from_a_global_generator():
    found = {}
    for path in sorted(Path(score_sde.__file__).parent.rglob("*.py")):
        name = str(path.relative_to(Path(score_sde.__file__).parent))
        if name in SEEDED or name.startswith(("nets/", "noise/")):
            continue
        lines = list(unseeded(ast.parse(path.read_text())))
        if lines:
            found[name] = lines
    assert not found, found
