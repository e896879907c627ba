"""Calibrate and verify from the command line."""

import json

import pytest
from test_run import TINY_NET, command


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_calibrate_writes_a_recipe_that_sampling_uses(work, capsys):
    assert command("--config", "vp_fashion", "--workdir", "run", *TINY_NET) == 0
    assert command("--workdir", "run", "--mode", "calibrate", "--nfe", "5") == 0
    recipe = json.loads((work / "run" / "recipe_5.json").read_text())
    assert len(recipe["times"]) == 5 and 0.5 < recipe["data_std"] < 2
    sample = ["--workdir", "run", "--mode", "sample", "--num_samples", "2", "--sampler", "adams"]
    capsys.readouterr()
    assert command(*sample, "--grid", "run/recipe_5.json") == 0
    assert "NFE 5" in capsys.readouterr().out
    assert command(*sample, "--nfe", "6") == 0  # blind: the run knows the data's scale
    assert command(*sample, "--grid", "nowhere.json") == 2
    assert "nowhere.json cannot be read" in capsys.readouterr().err


def test_verify_prints_a_table_and_writes_it(work, capsys):
    arguments = ["--mode", "verify", "--sampler", "heun", "--out", "report"]
    assert command(*arguments, "--config", "ve_cifar") == 0
    out = capsys.readouterr().out
    assert "heun on VESDE" in out and "order claimed 2" in out and "as claimed" in out
    report = json.loads((work / "report" / "heun.json").read_text())
    assert report["observed_order"] == pytest.approx(2, abs=0.25)
    assert (work / "report" / "heun.png").stat().st_size > 5000
    assert command("--mode", "verify", "--sampler", "hen") == 2
    assert "Did you mean 'heun'" in capsys.readouterr().err


def test_samples_to_a_tolerance_say_what_they_took(toy_run, capsys):
    sample = ["--workdir", str(toy_run), "--mode", "sample", "--num_samples", "4"]
    assert command(*sample, "--tolerance", "0.05") == 0
    assert "mean_nfe" in capsys.readouterr().out
    assert command(*sample, "--tolerance", "0.05", "--steps", "9") == 2
    assert "give neither --sampler, --steps nor --grid beside it" in capsys.readouterr().err
    assert command(*sample, "--tolerance", "1e-9", "--nfe", "30") == 2
    assert "do not reach tolerance=1e-09 within nfe=30" in capsys.readouterr().err
    assert command(*sample, "--tolerance", "-1") == 2
