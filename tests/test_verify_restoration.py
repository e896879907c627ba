"""The meter of restoration methods: exact draws are at the floor, wrong ones above it."""

import torch

from score_sde.cli import main
from score_sde.restoration.verify import problems, verify_restoration


def exact(sde, score, y, operator, *, noise_std, gaussian, n, nfe, seeds):
    """Draws of the exact posterior of the ring."""
    post = problems()["ring"].data.measured(operator.M, noise_std, y)
    return post.sample(n, seed=seeds[0])


def narrow(*given, **options):
    """Exact draws, nearer to their mean."""
    x = exact(*given, **options)
    return x.mean(0) + 0.4 * (x - x.mean(0))


def prior(sde, score, y, operator, *, noise_std, gaussian, n, nfe, seeds):
    """What someone draws who does not look at y."""
    return problems()["ring"].data.sample(n, seed=seeds[0])


def test_exact_draws_are_at_the_floor_and_calibrated_and_the_prior_is_not():
    common = dict(names=["ring"], nfe=(5,), n=256, seeds=range(3))
    right = verify_restoration(exact, calibrate=60, **common)
    wrong = verify_restoration(prior, **common)
    small = verify_restoration(narrow, calibrate=60, **common).calibration
    row = right.rows[0]
    assert row.sw2_x < 1.6 and row.wsw2_x < 1.6 and row.modes < 0.08 and 0.9 < row.fit < 1.1
    assert right.calibration["sbc_x"] < 1.7 and right.calibration["tarp_x"] < 1.7
    assert wrong.rows[0].sw2_x > 5 and wrong.rows[0].fit > 10
    assert small["spread"] > 1.2 and small["sbc_x"] > 1.3


def test_particles_are_near_the_posterior_of_every_kind_of_problem():
    report = verify_restoration("particles", nfe=(20,), n=128, seeds=(0,))
    assert report.mean("sw2_x", 20) < 2 and report.mean("wsw2_x", 20) < 1.8
    assert report.mean("modes", 20) < 0.1
    assert "project" in str(report)


def test_problems_have_more_than_one_mode_left():
    for name, problem in problems().items():
        assert torch.isfinite(problem.y).all()
        if name != "gauss16":
            assert float(problem.posterior.weights.max()) < 0.9, name


def test_the_command(tmp_path, capsys):
    words = ["main.py", "--mode", "verify", "--restoration", "reference", "--nfe", "4"]
    words += ["--option", "n=64"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    assert "reference on VPSDE" in capsys.readouterr().out
    assert (tmp_path / "restoration_reference.json").is_file()
    assert main([*words[:4], "refrence", *words[5:]]) == 2
    assert "'reference'" in capsys.readouterr().err
