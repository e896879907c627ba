"""Checkpoints as other projects write them, made of the golden weights."""

import json
import lzma
import pickle
import sys

import numpy as np
import torch
from golden_cases import CASES, GOLDEN, Case, gap
from safetensors.torch import save_file
from torch import nn

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


class GivenNoise:
    """A noise source whose every draw is the same."""

    def __init__(self, z):
        self.z = z

    def draw(self, t=None, s=None, which=None):
        return self.z


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


def tiny_checkpoint(path):
    path.write_bytes(lzma.decompress((GOLDEN / "song_checkpoint_tiny.pth.xz").read_bytes()))
    return path
