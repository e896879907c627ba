"""Labelled mixtures: the exact score of a class, and the exact tilted law."""

import pytest
import torch

from score_sde import VPSDE, GaussianMixture
from score_sde.scores import ScoreError, take

CENTRES = [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7], [0.0, 2.5]]
DATA = GaussianMixture([0.4, 0.2, 0.2, 0.2], CENTRES, [0.3, 0.2, 0.5, 0.2], labels=[0, 0, 1, 1])
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0, -1, 0])


def test_the_score_of_a_class_is_that_of_its_components():
    sde, t = VPSDE(), torch.tensor(0.3, dtype=torch.float64)
    score = DATA.score(sde)
    bound = score.bind(class_labels=LABELS)
    for i, label in enumerate(LABELS.tolist()):
        law = DATA if label < 0 else DATA.of_class(label)
        one = X[i : i + 1]
        torch.testing.assert_close(bound(X, t)[i : i + 1], law.score(sde)(one, t))
        torch.testing.assert_close(bound.log_prob(X, t)[i : i + 1], law.log_prob(one, sde, t))
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(take(bound, rows)(X[rows], t), bound(X, t)[rows])
    assert torch.equal(bound.bind()(X, t), score(X, t))
    everywhere = score.bind(class_labels=torch.tensor(1))
    torch.testing.assert_close(everywhere(X, t), DATA.of_class(1).score(sde)(X, t))


def test_the_tilted_law_is_drawn_exactly():
    """Its moments against sums over a fine grid of the plane."""
    line = torch.linspace(-6, 6, 601, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    label = torch.zeros(len(points), dtype=torch.int64)
    for scale in (1.0, 3.0):
        log_p = DATA.log_prob(points, class_labels=label)
        mass = (scale * log_p + (1 - scale) * DATA.log_prob(points)).softmax(0)
        mean = mass @ points
        cov = (mass[:, None] * (points - mean)).T @ (points - mean)
        x = DATA.sample_tilted(0, scale, 40_000, seed=1)
        assert len(x) == 40_000
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
        torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.04)
    assert torch.equal(DATA.sample_tilted(0, 3.0, 9, seed=4), DATA.sample_tilted(0, 3.0, 9, seed=4))


def test_wrong_classes_are_said():
    score = DATA.score(VPSDE())
    with pytest.raises(ValueError, match=r"class 2 does not exist; there are \[0, 1\]"):
        score.bind(class_labels=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="this mixture has no classes"):
        GaussianMixture([1.0], [[0.0]], 1.0).score(VPSDE()).bind(class_labels=torch.tensor(0))
    with pytest.raises(ScoreError, match="6 rows of class_labels do not fit 2 samples"):
        score.bind(class_labels=LABELS)(X[:2], torch.tensor(0.5))
    with pytest.raises(ValueError, match="scale must be at least 1"):
        DATA.sample_tilted(0, 0.5, 3)
    with pytest.raises(ValueError, match=r"labels must be \(2,\)"):
        GaussianMixture([1.0, 1.0], [[0.0], [1.0]], 1.0, labels=[0])
