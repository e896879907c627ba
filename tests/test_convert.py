"""Foreign checkpoints: the imported score is the peer's, and nothing in a file is executed."""

import json
import lzma
import math
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from golden_cases import CASES, GOLDEN, Case, gap
from safetensors.torch import load_file, save_file
from torch import nn

from score_sde import import_checkpoint, load, sample
from score_sde.checks import UserError
from score_sde.cli import main
from score_sde.convert import ConversionError, openai

pytestmark = pytest.mark.usefixtures("one_thread")
SONG = ("song_ddpm_vp", "song_ddpm_ve_discrete", "song_ncsnpp_ddpmpp_nf16", "song_ncsnpp_ve_nf16",
        "song_ncsnpp_ve_discrete", "song_ncsnpp_ffhq", "song_ncsnpp_vp_fir",
        "song_ncsnpp_ve_centered", "song_ddpm_vp_uncentered", "song_ncsnpp_ddpmpp_discrete",
        "song_ncsnpp_ddpmpp_uncentered")  # fmt: skip
WRAPPED = [name for name in CASES if name.startswith("edm_precond")]
DIFFUSERS = ("diffusers_ddpm_cifar10", "diffusers_unet_defaults", "diffusers_ncsnpp_w128")


def song_file(case, path, decay=None):
    """A checkpoint as score_sde_pytorch writes it; the averaged weights are the case's."""
    weights = case.weights(constants=True)
    decay = case.settings["model"]["ema_rate"] if decay is None else decay
    frozen = [k for k in weights if k == "sigmas" or (k.endswith(".W") and weights[k].ndim == 1)]
    torch.save(
        {
            "optimizer": {"param_groups": [{"lr": np.float64(2e-4)}], "state": {}},
            "model": {f"module.{k}": v if k in frozen else v + 1 for k, v in weights.items()},
            "ema": {
                "decay": decay,
                "num_updates": 7,
                "shadow_params": [v for k, v in weights.items() if k not in frozen],
            },
            "step": 7,
        },
        path,
    )
    return path


class Persistent:
    """What EDM pickles instead of a module: its class name, its source and its contents."""

    def __init__(self, name, contents, source):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name,
                     "state": contents}  # fmt: skip

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture
def edm_modules(monkeypatch):
    """Modules of EDM's names, so that pickling finds them."""
    persistence = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the source was about to be executed")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)


def edm_file(case, path, settings=None):
    """A pickle as EDM writes it; its source would write a file."""
    source = f"open({str(path.parent / 'executed')!r}, 'w').write('by the source')"

    def node(name, tensors):
        children, contents = {}, {"training": False, "skip_scale": np.sqrt(0.5), "_modules": {}}
        contents |= {"_parameters": {}, "_buffers": {}, "_non_persistent_buffers_set": set()}
        for key, value in tensors.items():
            head, _, rest = key.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = value
            elif head in ("weight", "bias"):
                contents["_parameters"][head] = nn.Parameter(value, requires_grad=False)
            else:
                contents["_buffers"][head] = value
        for head, below in children.items():
            if head in ("enc", "dec"):
                child = nn.ModuleDict()
                child._modules.update({k: node("Block", v) for k, v in split(below).items()})
            else:
                child = node(case.settings["model_type"] if head == "model" else "Layer", below)
            contents["_modules"][head] = child
        if name == case.peer:
            contents["_init_kwargs"] = settings or case.settings
        return Persistent(name, contents, source)

    def split(tensors):
        parts = {}
        for key, value in tensors.items():
            head, _, rest = key.partition(".")
            parts.setdefault(head, {})[rest] = value
        return parts

    found = {"ema": node(case.peer, case.weights(constants=True)), "loss_fn": None,
             "augment_pipe": None, "dataset_kwargs": {"path": "cifar10.zip"}}  # fmt: skip
    path.write_bytes(pickle.dumps(found))
    return path


def diffusers_folder(case, folder, scheduler=True, old_names=False, weights=None):
    folder.mkdir()
    said = {"_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", **case.settings}
    (folder / "config.json").write_text(json.dumps(said))
    if scheduler and "ncsnpp" in case.name:
        known = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 348.0}
    else:
        known = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4}
        known |= {"beta_end": 0.02, "num_train_timesteps": 1000, "prediction_type": "epsilon"}
    if scheduler:
        (folder / "scheduler_config.json").write_text(json.dumps(known))
    weights = case.weights() if weights is None else weights
    if old_names:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                         ("to_out.0", "proj_attn")):  # fmt: skip
            weights = {k.replace(f".{new}.", f".{old}."): v for k, v in weights.items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


def time_of(run, sigma):
    """The time at which a process of alpha 1 has this sigma."""
    return run.sde.time_of_log_snr(-2 * sigma.double().log())


def check_score(run, x, t, want):
    got = run.score(x.double(), t.double())
    assert gap(got, want.double()) < 1e-4


@pytest.mark.parametrize("name", SONG)
def test_score_sde_pytorch(name, tmp_path):
    case = Case(name)
    model, side = case.settings["model"], case.settings["data"]["image_size"]
    path = song_file(case, tmp_path / "checkpoint_8.pth")
    ve = case.settings["training"]["sde"] == "vesde"
    centered, given = case.settings["data"]["centered"], {"size": side}
    if centered == ve:  # unlike all published settings
        given["centered"] = centered
    if name == "song_ncsnpp_ddpmpp_discrete":
        given["continuous"] = False
    run = import_checkpoint(path, tmp_path / "run", given)
    assert run.step == 7 and run.data_spec.shape == (3, side, side)
    raw = run.data_spec.to_raw(torch.tensor([0.0, 1.0]))
    assert raw.tolist() == ([127.5, 255] if centered else [0, 255])
    if ve:
        assert (run.sde.sigma_min, run.sde.sigma_max) == (0.01, float(model["sigma_max"]))
    for call in case.calls:
        x, label, _ = case.inputs(call)
        if ve:
            fourier = model["embedding_type"] == "fourier" and model["name"] == "ncsnpp"
            sigma = label if fourier else case.sigmas()[label.long()]
            check_score(run, x, time_of(run, sigma), case.output(call))
        else:  # labels 999 t of continuous training, and i of a table's i + 1
            discrete = run.config["sde"]["name"] == "table"
            t = (label.double() + 1) / 1000 if discrete else label.double() / 999
            sigma = run.sde.sigma(t)[:, None, None, None]
            check_score(run, x, t, -case.output(call) / sigma)


def tiny_checkpoint(path):
    path.write_bytes(lzma.decompress((GOLDEN / "song_checkpoint_tiny.pth.xz").read_bytes()))
    return path


def under_numpy1(path, target):
    """The same file with NumPy's scalars under the name that NumPy 1 gave them."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in data
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            new.writestr(item, data)
    return target


@pytest.mark.parametrize("numpy", [1, 2])
def test_a_checkpoint_that_score_sde_pytorch_itself_wrote(numpy, tmp_path, capsys):
    path = tiny_checkpoint(tmp_path / "checkpoint.pth")
    if numpy == 1:
        path = under_numpy1(path, tmp_path / "old.pth")
    meta = json.loads((GOLDEN / "song_checkpoint_tiny.json").read_text())
    gold = np.load(GOLDEN / "song_checkpoint_tiny.npz")
    import_checkpoint(path, tmp_path / "run", {"size": 16})
    said = capsys.readouterr().out
    assert "score_sde_pytorch: 48,763 parameters, step 3" in said and "Fourier" in said
    x, sigma, _ = Case("song_checkpoint_tiny").inputs(meta["calls"][0])
    for weights, array in (("ema", "ema"), ("model", "raw")):
        run = load(tmp_path / "run", weights)
        check_score(run, x, time_of(run, sigma), torch.from_numpy(gold[array]))


def test_what_a_checkpoint_does_not_say_can_be_said(tmp_path):
    path = song_file(Case("song_ncsnpp_ddpmpp_nf16"), tmp_path / "c.pth")
    run = import_checkpoint(path, tmp_path / "a", {"size": 16, "process": "subvp"})
    assert run.config["sde"]["name"] == "subvp"
    run = import_checkpoint(path, tmp_path / "b", {"size": 16, "continuous": False})
    assert run.config["sde"] == {"name": "table", "table": "linear", "steps": 1000, "t_min": 1e-3}
    run = import_checkpoint(path, tmp_path / "c")  # attention at 16 pixels, not at 8
    assert run.data_spec.shape == (3, 32, 32)


@pytest.mark.parametrize("name", WRAPPED)
def test_edm(name, tmp_path, edm_modules):
    case = Case(name)
    run = import_checkpoint(edm_file(case, tmp_path / "net.pkl"), tmp_path / "run")
    assert not (tmp_path / "executed").exists()
    assert len(run.data_spec.classes) == 10 and run.data_spec.shape == (3, 16, 16)
    for call in case.calls:
        x, sigma, condition = case.inputs(call)
        t = run.sde.time_of_log_snr(-2 * sigma.double().log())
        alpha = run.sde.alpha(t)[:, None, None, None]  # VP sees x / sqrt(1 + sigma^2)
        got = run.score.denoise(alpha * x.double(), t, **condition)
        assert gap(got, case.output(call).double()) <= call["tolerance"]["relative"]
        level = sigma.double()[:, None, None, None]
        score = run.score(alpha * x.double(), t, **condition)
        want = (case.output(call).double() - x.double()) / (alpha * level**2)
        scale = (1 / (alpha * level)).flatten()  # that of the score: D cancels x where it is small
        error = (score - want).flatten(1).abs().amax(1) / scale
        assert float(error.max()) < 1e-4


@pytest.mark.parametrize(
    ("name", "old_names"), [*((name, False) for name in DIFFUSERS), (DIFFUSERS[1], True)]
)
def test_diffusers(name, old_names, tmp_path):
    case = Case(name)
    folder = diffusers_folder(case, tmp_path / "hub", old_names=old_names)
    run = import_checkpoint(folder, tmp_path / "run")
    for call in case.calls:
        x, label, _ = case.inputs(call)
        if "ncsnpp" in name:
            check_score(run, x, time_of(run, label), case.output(call))
        else:
            t = (label.double() + 1) / 1000
            sigma = run.sde.sigma(t)[:, None, None, None]
            alpha_bars = (1 - torch.linspace(1e-4, 0.02, 1000).double()).cumprod(0)
            torch.testing.assert_close(run.sde.alpha(t) ** 2, alpha_bars[label], rtol=1e-5, atol=0)
            check_score(run, x, t, -case.output(call) / sigma)


def openai_weights(case):
    """EDM's DhariwalUNet is guided-diffusion's network; the same weights under those names."""
    theirs, blocks = {}, {"enc": [], "dec": []}
    weights = {k.removeprefix("model."): v for k, v in case.weights().items()}
    for key in weights:
        part, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if part in blocks and name not in blocks[part]:
            blocks[part].append(name)

    def put(prefix, ours, name):
        for leaf in ("weight", "bias"):
            if f"{ours}.{leaf}" in weights:
                theirs[f"{prefix}{name}.{leaf}"] = weights[f"{ours}.{leaf}"]

    def block(prefix, ours, slot):
        for a, b in (("norm0", "in_layers.0"), ("conv0", "in_layers.2"), ("affine", "emb_layers.1"),
                     ("norm1", "out_layers.0"), ("conv1", "out_layers.3"),
                     ("skip", "skip_connection")):  # fmt: skip
            put(f"{prefix}.{slot}.", f"{ours}.{a}", b)
        if f"{ours}.qkv.weight" not in weights:
            return
        heads = len(weights[f"{ours}.proj.weight"]) // 64
        put(f"{prefix}.{slot + 1}.", f"{ours}.norm2", "norm")
        for leaf in ("weight", "bias"):  # interleaved there; q, k and v of each head here
            rows = weights[f"{ours}.qkv.{leaf}"]
            rows = rows.reshape(heads, 64, 3, -1).transpose(1, 2).reshape(len(rows), -1)
            proj = weights[f"{ours}.proj.{leaf}"]
            conv1d = leaf == "weight"
            theirs[f"{prefix}.{slot + 1}.qkv.{leaf}"] = rows[..., None] if conv1d else rows[:, 0]
            flat = proj.flatten(1)[..., None] if conv1d else proj
            theirs[f"{prefix}.{slot + 1}.proj_out.{leaf}"] = flat

    swap = torch.cat(weights["map_layer0.weight"].chunk(2, 1), 1)  # [cos, sin] in both
    theirs["time_embed.0.weight"], theirs["time_embed.0.bias"] = swap, weights["map_layer0.bias"]
    put("", "map_layer1", "time_embed.2")
    theirs["label_emb.weight"] = weights["map_label.weight"].T.contiguous()
    for i, name in enumerate(blocks["enc"]):
        if name.endswith("conv"):
            put("", f"enc.{name}", "input_blocks.0.0")
        else:
            block(f"input_blocks.{i}", f"enc.{name}", 0)
    index = -1
    for name in blocks["dec"]:
        if name.endswith("in0"):
            block("middle_block", f"dec.{name}", 0)
        elif name.endswith("in1"):
            block("middle_block", f"dec.{name}", 2)
        elif name.endswith("up"):
            slot = 2 if f"output_blocks.{index}.1.qkv.weight" in theirs else 1
            block(f"output_blocks.{index}", f"dec.{name}", slot)
        else:
            index += 1
            block(f"output_blocks.{index}", f"dec.{name}", 0)
    put("", "out_norm", "out.0")
    put("", "out_conv", "out.2")
    return theirs


@pytest.fixture
def openai_run(tmp_path, monkeypatch):
    """EDM took this network over, with fewer groups where it is narrow."""
    torch.save(openai_weights(Case("edm_precond_iddpm")), tmp_path / "model.pt")
    options = openai.net_options

    def narrow(theirs, given):
        return options(theirs, given) | {"group_channels": 4}

    monkeypatch.setattr(openai, "net_options", narrow)
    return import_checkpoint(tmp_path / "model.pt", tmp_path / "run", {"size": 16, "steps": 1000})


def test_openai(openai_run):
    case, run = Case("edm_precond_iddpm"), openai_run
    assert run.config["net"]["out_channels"] == 6 and run.config["net"]["attention"] == [8, 4]
    labels = torch.tensor([207.0, 914.0])  # nearest to these sigmas in its table
    for call in case.calls:
        x, sigma, condition = case.inputs(call)
        if condition:
            continue  # with augmentation labels, which OpenAI's network does not have
        inputs = x / (1 + sigma**2).sqrt()[:, None, None, None]
        out = run.score.net(inputs, labels, **condition)
        assert gap(out, case.output(call, "array_F")) < 1e-5
    t = torch.tensor([0.208, 0.915], dtype=torch.float64)
    eps = run.score.eps(x.double(), t)
    assert gap(eps, run.score.net(x, labels)[:, :3].double()) < 1e-4


class GivenNoise:
    """A noise source whose every draw is the same."""

    def __init__(self, z):
        self.z = z

    def draw(self, t=None, s=None, which=None):
        return self.z


@pytest.mark.parametrize("i", [1000, 730, 2])
def test_learned_variances_of_openai_are_those_of_the_paper(openai_run, i):
    """x_{i-1} = mu + Sigma^(1/2) z, Sigma = exp(v log beta + (1 - v) log beta~), 2102.09672."""
    run = openai_run
    assert run.score.learned_variance and run.config["sde"]["table"] == "linear"
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cat([torch.ones(1), (1 - betas).cumprod(0)])
    beta, tilde = float(betas[i - 1]), float(betas[i - 1] * (1 - bars[i - 1]) / (1 - bars[i]))
    gen = torch.Generator().manual_seed(i)
    x, z = torch.randn(2, 2, 3, 16, 16, generator=gen)
    classes = torch.tensor([3, 8])
    with torch.no_grad():
        out = run.score.net(x, torch.full((2,), i - 1.0), class_labels=classes).double()
    eps, v = out[:, :3], (out[:, 3:] + 1) / 2
    assert float(v.std()) > 0.01  # it makes a difference
    mean = (x - beta / (1 - bars[i]).sqrt() * eps) / (1 - beta) ** 0.5
    want = mean + torch.exp(0.5 * (v * math.log(beta) + (1 - v) * math.log(tilde))) * z
    got = sample(run.sde, run.score.bind(class_labels=classes), x_T=x, method="ancestral",
                 variance="learned", grid=[i / 1000, (i - 1) / 1000], denoise=False,
                 noise=lambda *_: GivenNoise(z))  # fmt: skip
    assert gap(got.double(), want) < 1e-5


def test_ancestral_takes_learned_variances_unless_told(openai_run, tmp_path):
    command = ["main.py", "--workdir", str(openai_run.path), "--mode", "sample", "--device", "cpu",
               "--sampler", "ancestral", "--steps", "3", "--num_samples", "2"]  # fmt: skip
    for name, option in (("learned", []), ("posterior", ["--option", "variance=posterior"])):
        assert main([*command, *option, "--out", str(tmp_path / name)]) == 0
        facts = json.loads((tmp_path / name / "settings.json").read_text())
        assert facts["variance"] == name and len(facts["class_labels"]) == 2


def ho_weights():
    """diffusers' weights of this network under its older names."""
    old = {}
    for key, value in Case("diffusers_ddpm_cifar10").weights().items():
        for new, name in (
            ("time_embedding.linear_1", "temb.dense.0"),
            ("time_embedding.linear_2", "temb.dense.1"), ("conv_norm_out", "norm_out"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"),
            ("_blocks.", "."), (".resnets.", ".block."), (".attentions.", ".attn."),
            ("time_emb_proj", "temb_proj"), ("conv_shortcut", "nin_shortcut"),
            ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("group_norm", "norm"),
            ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
        ):  # fmt: skip
            key = key.replace(new, name)
        if ".attn" in key and value.ndim == 2:
            value = value[:, :, None, None]
        if key.startswith("up."):
            _, level, rest = key.split(".", 2)
            key = f"up.{3 - int(level)}.{rest}"
        old[key] = value
    return old


def test_pytorch_versions_of_hos_ddpm(tmp_path):
    case = Case("diffusers_ddpm_cifar10")
    torch.save(ho_weights(), tmp_path / "model-790000.ckpt")
    run = import_checkpoint(tmp_path / "model-790000.ckpt", tmp_path / "run")
    assert run.data_spec.shape == (3, 32, 32)
    for call in case.calls:
        x, label, _ = case.inputs(call)
        t = (label.double() + 1) / 1000
        check_score(run, x, t, -case.output(call) / run.sde.sigma(t)[:, None, None, None])


SAMPLED = ["song", "ho", "diffusers", "diffusers_ncsnpp_w128", "openai", *WRAPPED]


@pytest.mark.parametrize("layout", SAMPLED)
def test_import_and_sample_from_the_command_line(layout, tmp_path, capsys, edm_modules):
    option = []
    if layout == "song":
        path, option = tiny_checkpoint(tmp_path / "c.pth"), ["--option", "size=16"]
    elif layout in WRAPPED:
        path = edm_file(Case(layout), tmp_path / "net.pkl")
    elif layout.startswith("diffusers"):
        name = layout if "ncsnpp" in layout else "diffusers_unet_defaults"
        path = diffusers_folder(Case(name), tmp_path / "hub")
    else:
        path, option = tmp_path / "m.ckpt", ["--option", "size=16"]
        weights = openai_weights(Case("edm_precond_iddpm")) if layout == "openai" else ho_weights()
        torch.save(weights, path)
    work = str(tmp_path / "run")
    command = ["main.py", "--workdir", work, "--device", "cpu"]
    assert main([*command, "--mode", "import", "--checkpoint", str(path), *option]) == 0
    assert "parameters" in capsys.readouterr().out
    sampler = ["--sampler", "adams", "--nfe", "10", "--num_samples", "2"]
    assert main([*command, "--mode", "sample", *sampler]) == 0
    files = np.load(next((tmp_path / "run" / "samples").glob("adams_nfe10_*/samples.npz")))
    assert files["samples"].shape == (2, 16, 16, 3)
    assert ("class_labels" in files) == (layout in ("openai", *WRAPPED))
    assert main([*command, "--mode", "import", "--checkpoint", str(path), *option]) == 2
    assert "in use" in capsys.readouterr().err


def test_edm_networks_that_lost_their_labels_at_times_need_none(tmp_path, edm_modules):
    case = Case("edm_precond_edm_ddpmpp")
    said = {**case.settings, "label_dropout": 0.1}
    always = import_checkpoint(edm_file(case, tmp_path / "a.pkl"), tmp_path / "a", device="cpu")
    times = import_checkpoint(
        edm_file(case, tmp_path / "b.pkl", said), tmp_path / "b", device="cpu"
    )
    assert times.score.net.class_dropout == 0.1 and times.class_labels(None, range(3)) is None
    assert len(always.class_labels(None, range(3))) == 3
    assert times.class_labels(7, range(3)).tolist() == [7, 7, 7]


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
        (_truncated, "cut short or damaged"),
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
        (lambda p: _short(_hub(p)), "diffusion_pytorch_model.safetensors is cut short"),
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
        ({"sise": 16}, "'sise' does not go with score_sde_pytorch files; its options are process"),
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
    from score_sde.runs.run import RunError
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
