"""Likelihoods, latents and interpolations of a run, from the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Processes
from test_run import TINY_NET, command

from score_sde import cli, load
from score_sde.data import load_data
from score_sde.likelihood import dequantize, log_likelihood
from score_sde.runs.outputs import Output

QUICK = ["--nfe=10", "--probes=2", "--batch_size=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("analysis") / "tiny"
    tiny = [*TINY_NET, "--config.model.precision=fp32"]
    assert command("--config", "vp_fashion", "--workdir", str(workdir), *tiny) == 0
    return workdir


def stop_after(function, calls: int):
    """The function, which ctrl-C stops after so many calls."""
    done = []

    def counted(*arguments):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(function(*arguments))

    return counted


def measured(folder: Path) -> tuple[dict, dict]:
    values = dict(np.load(folder / "likelihood.npz"))
    return values, json.loads((folder / "likelihood.json").read_text())


@pytest.mark.usefixtures("one_thread")
def test_likelihood_of_images_is_that_of_the_function_in_bits(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("score_sde.runs.likelihood._chain_steps", lambda run: 30)  # not 1000
    out = tmp_path / "out"
    arguments = ["--workdir", str(trained), "--mode=likelihood", "--num_samples=5", f"--out={out}"]
    assert command(*arguments, *QUICK, "--bound=both", "--repeats=2") == 0
    values, said = measured(out)
    run, spec = load(trained), load(trained).data_spec
    raw = load_data("fashion_mnist", "test").raw[:5]
    low, scale = (0 - spec.shift) / spec.scale, 255 / spec.scale
    nats = []
    for k in range(2):
        x = dequantize(spec.to_model(raw), 256, low, scale, range(5), k)
        seeds = [i + k * 2**42 for i in range(5)]
        found = log_likelihood(run.sde, run.score, x, nfe=10, probes=2, seeds=seeds, prior="sde",
                               truncation="bound", data_std=run.data_std)  # fmt: skip
        nats.append(found.nats)
    want = torch.stack(nats).mean(0).numpy()
    # Convolutions of other batch sizes round differently.
    np.testing.assert_allclose(values["nats"], want, rtol=1e-4)
    bits = -values["nats"] / (784 * math.log(2)) + math.log2(256 / scale)
    np.testing.assert_allclose(values["bits_per_dim"], bits)
    assert said["bits_per_dim"]["mean"] == pytest.approx(bits.mean())
    assert (values["importance_weighted_nats"] >= values["nats"]).all()
    for bound in ("chain", "continuous"):
        terms = sum(values[f"{bound}_{term}"] for term in ("prior", "steps", "decoder"))
        np.testing.assert_allclose(values[f"{bound}_bound"], terms)
    assert said["protocol"]["options"]["truncation"] == "bound" and said["items"] == 5
    assert "bits/dim over 5 items of fashion_mnist (test); NFE 20" in said["line"]
    assert (out / "histogram.png").stat().st_size > 5000


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_likelihood_goes_on(trained, tmp_path, capsys, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    base = ["--workdir", str(trained), "--mode=likelihood", *QUICK]
    assert command(*base, "--num_samples=5", f"--out={whole}") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Output, "write_part", stop_after(Output.write_part, 1))
        assert command(*base, "--num_samples=5", f"--out={parts}") == 130
    (kept,) = (parts / "parts").glob("*.npz")
    monkeypatch.setattr(Output, "write_part", stop_after(Output.write_part, 2))  # the other two
    assert command(*base, "--num_samples=5", f"--out={parts}") == 0
    assert not kept.exists()
    for name, value in measured(whole)[0].items():
        np.testing.assert_array_equal(value, measured(parts)[0][name])
    assert command(*base, "--num_samples=5", f"--out={parts}", "--resume", "--nfe=12") == 2
    assert "holds what another request made (options" in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_the_numbers_of_one(trained, tmp_path):
    base = ["score-sde", "--workdir", str(trained), "--mode=likelihood", "--num_samples=6",
            "--device=cpu", *QUICK]  # fmt: skip
    assert cli.main([*base, f"--out={tmp_path / 'one'}"]) == 0
    processes = Processes(tmp_path)
    assert processes.run(cli.main, 2, [*base, f"--out={tmp_path / 'two'}"]) == [0, 0]
    one, two = (measured(tmp_path / name)[0] for name in ("one", "two"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.usefixtures("one_thread")
def test_all_items_of_data_without_levels_in_nats(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [
        "--config.training.steps=20",
        "--config.sampling.steps=2",
        "--config.sampling.batch_size=4",
    ]
    rng = np.random.default_rng(0)
    np.savez("points.npz", train=rng.normal(size=(60, 2)), test=rng.normal(size=(7, 2)))
    assert command("--config", "toy2d", "--data", "points.npz", "--workdir=w", *small) == 0
    assert command("--workdir=w", "--mode=likelihood", "--nfe=16") == 0
    assert "reporting nats, not bits/dim" in capsys.readouterr().out
    values, said = measured(next(Path("w/likelihood/test").iterdir()))
    assert len(values["nats"]) == 7 and "bits_per_dim" not in values
    assert said["facts"]["divergence"] == "exact" and said["protocol"]["split"] == "test"


@pytest.mark.usefixtures("one_thread")
def test_encode_and_interpolate(trained, tmp_path, capsys):
    base = ["--workdir", str(trained), "--nfe=48"]
    assert command(*base, "--mode=encode", "--num_samples=4", f"--out={tmp_path / 'e'}") == 0
    facts = json.loads((tmp_path / "e" / "settings.json").read_text())
    arrays = np.load(tmp_path / "e" / "latents.npz")
    off = np.sqrt(((arrays["decoded"] - arrays["items"]) ** 2).mean())
    assert facts["round_trip_rms"] == pytest.approx(off, rel=1e-3) and off < 1e-2
    assert f"rms {off:.2e}"[:7] in capsys.readouterr().out
    out = tmp_path / "i"
    assert command(*base, "--mode=interpolate", "--pairs=2", f"--out={out}") == 0
    images = np.load(out / "interpolation.npz")["images"]
    assert images.shape == (2, 9, 1, 28, 28)
    for pair in range(2):
        np.testing.assert_allclose(images[pair, 0], arrays["items"][2 * pair], atol=0.05)
        np.testing.assert_allclose(images[pair, -1], arrays["items"][2 * pair + 1], atol=0.05)
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split=validation"], "split must be 'train' or 'test'"),
        (["--num_samples=0"], "num_samples must be at least 1"),
        (["--bound=elbo"], "--bound must be one of none, chain"),
        (["--repeats=0"], "repeats must be at least 1"),
        (["--probes=0"], "probes must be at least 1"),
        (["--option", "solver=euler"], "solver must be 'adams' or 'dopri5' (got 'euler')"),
        (["--option", "solver=5"], "solver must be 'adams' or 'dopri5' (got 5)"),
        (["--option", "rtol=0"], "rtol must be greater than 0 (got 0)"),
        (["--option", "t_min=3"], "t_min must lie in (0, 1.0) (got 3"),
        (["--option", "t_min=auto"], 'truncation="bound" has none'),  # that of data with levels
        (["--option", "nfes=3"], "nfes is unknown. Did you mean 'nfe'? Known are divergence"),
    ],
)
def test_bad_flags_are_explained(trained, tmp_path, capsys, arguments, message):
    out = f"--out={tmp_path / 'out'}"
    assert command("--workdir", str(trained), "--mode=likelihood", out, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # refused before any work
