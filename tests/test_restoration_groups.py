"""Groups of particles: over processes, in batches, and refused where they cannot be kept."""

import pytest
import torch
from launching import Processes

from score_sde import VPSDE, Gaussian, GaussianMixture, distributed, restore
from score_sde.restoration import Matrix, Nonlinear
from score_sde.restoration import system as systems
from score_sde.restoration.checks import check_memory
from score_sde.restoration.posterior import make_system

F64 = torch.float64
RING = GaussianMixture(
    [0.2, 0.3, 0.5], [[1.2, 0.0], [-0.6, 1.0], [-0.6, -1.0]], torch.tensor([0.02, 0.05, 0.03])
)
GAUSSIAN = Gaussian(RING.mean(), RING.covariance())
M, Y = Matrix(torch.tensor([[1.0, 0.2]])), torch.tensor([[-0.5], [0.9], [0.1]])


def drawn(method):
    sde = VPSDE()
    common = dict(noise_std=0.2, gaussian=GAUSSIAN, n=10, nfe=20, group=5, seeds=range(10))
    return restore(sde, RING.score(sde), Y, M, method=method, dtype=F64, return_info=True, **common)


def both(path: str) -> int:
    """What each process of two writes: all draws of both methods."""
    with distributed.processes(torch.device("cpu")):
        results = [drawn(method) for method in ("particles", "hybrid")]
        torch.save([(r.x, r.log_evidence) for r in results], f"{path}{distributed.rank()}.pt")
    return 0


def test_two_processes_draw_what_one_does(tmp_path):
    assert Processes(tmp_path).run(both, 2, str(tmp_path / "of")) == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"of{rank}.pt")
        for method, (x, evidence) in zip(("particles", "hybrid"), found, strict=True):
            alone = drawn(method)
            torch.testing.assert_close(x, alone.x, atol=1e-12, rtol=0)
            if evidence is not None:
                torch.testing.assert_close(evidence, alone.log_evidence)


def test_batches_of_the_score_change_nothing_and_bound_what_it_is_given():
    sde, sizes = VPSDE(), []
    score = RING.score(sde)

    class Watched:
        def __call__(self, x, t):
            sizes.append(len(x))
            return score(x, t)

    common = dict(noise_std=0.2, gaussian=GAUSSIAN, n=200, nfe=20, seeds=range(200), dtype=F64)
    whole = restore(sde, Watched(), Y[0], M, method="particles", **common)
    assert max(sizes) > 64
    sizes.clear()
    parts = restore(sde, Watched(), Y[0], M, method="particles", batch_size=64, **common)
    assert max(sizes) == 64
    torch.testing.assert_close(parts, whole, atol=1e-9, rtol=1e-9)


def test_particles_that_cannot_be_weighed_or_kept_are_refused_before_any_work():
    sde, large = VPSDE(), Gaussian(torch.zeros(512), torch.eye(512))
    bent = Nonlinear(lambda x: x**2)
    common = dict(noise_std=0.2, gaussian=large, n=300, nfe=20, seeds=range(300))
    with pytest.raises(ValueError, match="derivative.*group=.*hybrid"):
        restore(sde, large.score(sde), torch.ones(512), bent, method="particles", **common)
    system = make_system(Y[0], M, 0.2, GAUSSIAN, None)
    with pytest.raises(ValueError, match="GiB there are: give group="):
        check_memory(system, 10**9, 2 * 10**9, True)
    check_memory(system, 10**4, 2 * 10**4, True)


def test_a_nonlinear_map_that_is_too_large_for_particles_goes_to_the_hybrid(monkeypatch):
    monkeypatch.setattr(systems, "LINEARISED", 1000)
    sde, large = VPSDE(), Gaussian(torch.zeros(6), torch.eye(6))
    bent = Nonlinear(lambda x: x + 0.1 * x**3)
    result = restore(sde, large.score(sde), torch.full((6,), 0.5), bent, noise_std=0.3,
                     gaussian=large, n=120, nfe=8, seeds=range(120), return_info=True)  # fmt: skip
    assert result.method == "hybrid" and "hybrid" in result.said
    assert float(result.residual) == pytest.approx(1, abs=0.5)


def test_a_pilot_goes_no_further_than_to_see_that_particles_would_not_live():
    """Thin clusters in 40 dimensions, all of which is seen."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(80, 40, generator=g, dtype=F64)
    data, sde = GaussianMixture([1.0] * 80, means, 0.01), VPSDE()
    gaussian, rows = Gaussian(data.mean(), data.covariance()), []

    def counted(x, t):
        rows.append(len(x))
        return data.score(sde)(x, t)

    common = dict(noise_std=0.05, gaussian=gaussian, n=64, nfe=60, seeds=range(64))
    found = restore(sde, counted, means[0], Matrix(torch.eye(40)), return_info=True, **common)
    assert found.method == "hybrid" and "would leave few" in found.said
    tried = [n for n in rows if n < 64]
    assert 2 <= len(tried) < 24  # of the levels of a pilot
    assert found.nfe + found.products <= 60
