"""Foreign files that are hostile, broken or something else: refused, and nothing is left."""

import pickle

import pytest
import torch
from foreign import Persistent, diffusers_folder, edm_file, song_file, tiny_checkpoint
from golden_cases import Case

from score_sde import import_checkpoint, load
from score_sde.checks import UserError
from score_sde.cli import main
from score_sde.convert import ConversionError

pytestmark = pytest.mark.usefixtures("one_thread")


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["ema", "loss_fn", "_init_kwargs"])
def test_hostile_pickles_are_refused_and_nothing_is_executed(where, tmp_path, edm_modules, capsys):
    victim = tmp_path / "written"
    evil = Hostile(exec, f"open({str(victim)!r}, 'w').write('x')")
    contents = {"_modules": {}, "_parameters": {}, "_buffers": {}, "_init_kwargs": {}}
    if where == "_init_kwargs":
        contents["_init_kwargs"] = {"sigma_data": evil}
    net = Persistent("EDMPrecond", contents, "raise SystemExit")
    found = {"ema": net, "loss_fn": None} | ({} if where == "_init_kwargs" else {where: evil})
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps(found))
    assert main(["main.py", "--mode", "import", "--checkpoint", str(path),
                 "--workdir", str(tmp_path / "run")]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert "builtins.exec" in said and "Nothing of it was executed" in said
    assert not victim.exists() and not (tmp_path / "run").exists()


def test_globals_by_another_road_are_refused_too(tmp_path):
    """Attribute paths, extension codes, and what a hidden module would give."""
    for module, name in (("torch.nn.modules.module", "torch.load"), ("numpy", "load"),
                         ("torch.storage", "_load_from_bytes.__globals__"), ("os", "system"),
                         ("torch._utils", "_rebuild_tensor_v2.__globals__")):  # fmt: skip
        text = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode()
        text += b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
        path = tmp_path / "net.pkl"
        path.write_bytes(text)
        with pytest.raises(ConversionError, match=f"asks for {module}.{name}"):
            import_checkpoint(path, tmp_path / "run")
    torch.save({"model": Hostile(print, "executed")}, tmp_path / "evil.pth")
    with pytest.raises(ConversionError, match="asks for .*print, which weights"):
        import_checkpoint(tmp_path / "evil.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _song(tmp_path, change):
    path = song_file(Case("song_ncsnpp_ve_nf16"), tmp_path / "c.pth")
    found = torch.load(path, weights_only=False)
    change(found)
    torch.save(found, path)
    return path


def _truncated(tmp_path):
    path = tiny_checkpoint(tmp_path / "c.pth")
    path.write_bytes(path.read_bytes()[:100_000])
    return path


def _text(tmp_path):
    path = tmp_path / "c.pth"
    path.write_text("<html>quota exceeded</html>")
    return path


def _other(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pt")
    return tmp_path / "resnet.pt"


def _empty(tmp_path):
    (tmp_path / "c.pth").touch()
    return tmp_path / "c.pth"


def _hub(tmp_path, drop=None, add=None, dtype=None, **settings):
    case = Case("diffusers_unet_defaults")
    case.settings = {**case.settings, **settings}
    weights = case.weights()
    weights = {k: v for k, v in weights.items() if k != drop} | (add or {})
    weights = {k: v.to(dtype or v.dtype) for k, v in weights.items()}
    return diffusers_folder(case, tmp_path / "hub", weights=weights)


def _short(folder):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


def _without(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, r"is empty \(0 bytes\)"),
        (_text, "is not a checkpoint. Known are score_sde_pytorch"),
        (_truncated, "is not a whole file of torch.save"),
        (_other, "unknown layout .it begins with layer1"),
        (lambda p: p / "none.pth", "no file or folder"),
        (lambda p: p, "no config.json, so it is not a folder of diffusers"),
        (
            lambda p: _song(p, lambda f: f["model"].pop("module.all_modules.4.Conv_0.bias")),
            "averaged weights do not match",
        ),
        (
            lambda p: _song(p, lambda f: f["model"].update({"module.extra": torch.zeros(1)})),
            "averaged weights do not match",
        ),
        (
            lambda p: _song(p, lambda f: f["ema"]["shadow_params"].pop()),
            "averaged weights do not match",
        ),
        (lambda p: _hub(p, drop="conv_in.bias"), "lacks conv_in.bias: it was cut short"),
        (lambda p: _hub(p, add={"more": torch.zeros(1)}), r"1 tensors that nothing uses .* more"),
        (lambda p: _hub(p, dtype=torch.int32), "torch.int32, not floating-point weights"),
        (
            lambda p: _hub(p, block_out_channels=[32, 96], layers_per_block=2),
            r"differ in block_out_channels \(\[32, 96\] .* \[32, 64\] .*, layers_per_block \(2",
        ),
        (lambda p: _hub(p, block_out_channels=["32", None]), "do not fit its layout"),
        (lambda p: _short(_hub(p)), r"\.safetensors is not a whole \.safetensors file"),
        (lambda p: _without(_hub(p)), "has 0 weight files; one is needed"),
        (lambda p: _hub(p, add={"conv_out.bias": torch.zeros(5)}), r"\(5,\) where .* has \(3,\)"),
        (lambda p: _hub(p, act_fn="gelu"), "act_fn = 'gelu' is not supported"),
        (
            lambda p: _hub(p, down_block_types=["DownBlock2D", "ResnetDownsampleBlock2D"]),
            "ResnetDownsampleBlock2D is not supported",
        ),
    ],
)  # fmt: skip
def test_bad_files_are_explained_and_leave_nothing(make, message, tmp_path, capsys):
    path = make(tmp_path)
    work = tmp_path / "runs" / "x"
    command = ["main.py", "--mode", "import", "--checkpoint", str(path), "--workdir", str(work)]
    assert main(command) == 2
    with pytest.raises(ConversionError, match=message):
        import_checkpoint(path, work)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said and len(said) < 700
    assert not work.parent.exists() or not list(work.parent.iterdir())


def test_bad_edm_pickles_are_explained(tmp_path, edm_modules):
    case = Case("edm_precond_edm_ddpmpp")
    said = {**case.settings, "model_channels": 32, "num_blocks": 4}
    path = edm_file(case, tmp_path / "net.pkl", said)
    with pytest.raises(ConversionError, match=r"model_channels \(32 .* 16 .*num_blocks \(4 .* 2 "):
        import_checkpoint(path, tmp_path / "run")
    edm_file(case, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConversionError, match="has 5000 bytes and asks for .* it is damaged"):
        import_checkpoint(path, tmp_path / "run")
    path.write_bytes(pickle.dumps({"G_ema": 1}))
    with pytest.raises(ConversionError, match="without a network under 'ema'"):
        import_checkpoint(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_options_and_directories(tmp_path, capsys):
    path = tiny_checkpoint(tmp_path / "c.pth")
    for given, message in (
        ({"sise": 16}, "score_sde_pytorch files: the option 'sise' is unknown. Did you mean"),
        ({"size": "big"}, "size 'big' must be a side in pixels"),
        ({"process": "vpsde"}, "process 'vpsde' is unknown"),
        ({"size": 16, "centered": 3}, "centered 3 must be True or False"),
        ({"size": 16, "process": "vp"}, "Fourier features belong to process ve, not vp"),
    ):
        with pytest.raises(ConversionError, match=message):
            import_checkpoint(path, tmp_path / "run", given)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="in use"):
            import_checkpoint(path, tmp_path / "run", {"size": 16}, overwrite=overwrite)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"
    import_checkpoint(path, tmp_path / "other", {"size": 16})
    import_checkpoint(path, tmp_path / "other", {"size": 32}, overwrite=True)
    assert load(tmp_path / "other").data_spec.shape == (3, 32, 32)
    assert main(["main.py", "--mode", "import", "--workdir", str(tmp_path / "x")]) == 2
    assert "--checkpoint" in capsys.readouterr().err
