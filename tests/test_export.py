"""Exports are what the other library wrote and reads, or are refused."""

import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from foreign import DIFFUSERS, diffusers_folder, tiny_checkpoint
from golden_cases import Case, gap
from safetensors.torch import load_file

from score_sde import import_checkpoint, load
from score_sde.cli import main
from score_sde.convert import ConversionError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["diffusers_ddpm_cifar10", "diffusers_ncsnpp_w128"])
def test_export_to_diffusers_gives_back_the_file(name, tmp_path):
    case = Case(name)
    import_checkpoint(diffusers_folder(case, tmp_path / "hub"), tmp_path / "run")
    command = ["main.py", "--mode", "export", "--format", "diffusers"]
    out = tmp_path / "out"
    assert main([*command, "--workdir", str(tmp_path / "run"), "--out", str(out)]) == 0
    tensors = load_file(out / "diffusion_pytorch_model.safetensors")
    want = case.weights()
    assert tensors.keys() == want.keys()
    assert all(torch.equal(tensors[key], value) for key, value in want.items())
    said = json.loads((out / "config.json").read_text())
    for key in case.settings:
        if key not in ("downsample_padding", "freq_shift", "flip_sin_to_cos", "norm_num_groups"):
            assert said[key] == case.settings[key], key
    assert (out / "scheduler_config.json").is_file()
    again = import_checkpoint(out, tmp_path / "again")
    assert again.config == load(tmp_path / "run").config | {"sde": again.config["sde"]}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_itself_reads_the_export(name, tmp_path):
    reader = pytest.importorskip("diffusers").UNet2DModel
    case = Case(name)
    import_checkpoint(diffusers_folder(case, tmp_path / "hub"), tmp_path / "run")
    work = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(["main.py", "--mode", "export", "--format", "diffusers", *work]) == 0
    net = reader.from_pretrained(tmp_path / "out").eval()
    for call in case.calls:
        x, label, _ = case.inputs(call)
        with torch.no_grad():
            assert gap(net(x, label).sample, case.output(call)) < 1e-5


def test_exports_that_diffusers_has_no_network_for(tmp_path, capsys):
    import_checkpoint(tiny_checkpoint(tmp_path / "c.pth"), tmp_path / "run", {"size": 16})
    work = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(["main.py", "--mode", "export", "--format", "diffusers", *work]) == 2
    assert "no network with net.resample='block'" in capsys.readouterr().err
    assert main(["main.py", "--mode", "export", "--format", "onnx", *work]) == 2
    assert "must be one of diffusers, safetensors (got 'onnx')" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_export_as_safetensors_is_loaded_like_a_run(tmp_path):
    path = tiny_checkpoint(tmp_path / "c.pth")
    run = import_checkpoint(path, tmp_path / "run", {"size": 16})
    work = ["--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(["main.py", "--mode", "export", "--format", "safetensors", *work]) == 0
    exported = load(tmp_path / "out")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.9])
    assert torch.equal(run.score(x, t), exported.score(x, t))
    assert exported.data_spec == run.data_spec and math.isclose(exported.data_std, 0.25)
    assert main(["main.py", "--mode", "export", *work]) == 2  # the folder is in use


def test_an_imported_run_cannot_be_resumed_but_says_so(tmp_path):
    from score_sde.runs.directory import RunError
    from score_sde.runs.train import train

    run = import_checkpoint(tiny_checkpoint(tmp_path / "c.pth"), tmp_path / "run", {"size": 16})
    np.save(
        tmp_path / "x.npy",
        np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
    )
    data = {"name": str(tmp_path / "x.npy"), "scaling": "unit"}
    settings = {**run.config, "data": data, "training": {"steps": 5}}
    with pytest.raises(RunError, match="imported without its optimiser"):
        train(settings, tmp_path / "run", resume=True, device="cpu")
    with pytest.raises(RunError, match="is a folder of another toolkit"):
        load(diffusers_folder(Case("diffusers_unet_defaults"), tmp_path / "hub"))


def test_hub_ids_are_resolved_by_huggingface_hub(tmp_path, monkeypatch):
    folder = diffusers_folder(Case("diffusers_unet_defaults"), tmp_path / "hub")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, tuple(allow_patterns)))
        if name == "someone/private":
            raise OSError("401 Client Error")
        return str(folder)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    run = import_checkpoint("someone/ddpm-16", tmp_path / "run")
    assert run.data_spec.shape == (3, 16, 16)
    assert asked == [("someone/ddpm-16", ("*.json", "*.safetensors", "*.bin"))]
    with pytest.raises(ConversionError, match="someone/private, and the hub says: 401 Client"):
        import_checkpoint("someone/private", tmp_path / "other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConversionError, match="pip install huggingface_hub"):
        import_checkpoint("someone/ddpm-16", tmp_path / "other")
