"""Runs that are broken on purpose, and sound ones, for `diagnosis.py`: `make`.

Data, process, target, network and size of the fault are drawn by the seed.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from broken_networks import Bounded, Deaf, Dropping, Left, Scaled, Told, neglectful
from torch import nn

from score_sde.checks import UserError
from score_sde.data import load_data
from score_sde.runs.train import train
from score_sde.training import checkpoints

UNEVEN = ("moons", "swissroll", "clusters5", "sheet8")  # others look alike turned by 90 degrees
SOUND_STEPS = 2000  # after 700 to 900 some are undertrained indeed
TOYS = ("ring8", "moons", "checkerboard", "swissroll", "clusters5", "sheet8")


def vectors(name: str, dice: random.Random) -> np.ndarray:
    """Items (n, D) of a set, of zero mean and unit variance about."""
    rng = np.random.default_rng(dice.randrange(10**6))
    if name == "clusters5":
        centres = rng.normal(size=(6, 5)) * 1.3
        return (centres[rng.integers(6, size=8000)] + 0.15 * rng.normal(size=(8000, 5))) / 1.3
    if name == "sheet8":
        u = rng.uniform(-1.7, 1.7, size=(8000, 2))
        turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
        x = np.concatenate([u, np.sin(2 * u), 0.05 * rng.normal(size=(8000, 4))], 1)
        return 1.3 * x @ turn
    return load_data(name, scaling="standard").reference(8000).numpy()


def recipe(dice: random.Random, images: bool) -> dict[str, Any]:
    """A sound config on data of the seed; data.name is filled in by `make`."""
    process, target = dice.choice([("vp", "v"), ("vp", "eps"), ("vp", "x0"), ("subvp", "v"),
                                   ("cosine", "v"), ("flow", "velocity"), ("edm", "F"),
                                   ("ve", "F"), ("vp", "F")])  # fmt: skip
    if images:
        process, target = dice.choice([("vp", "v"), ("vp", "F"), ("edm", "F")])
    config: dict[str, Any] = {
        "data": {"scaling": "standard"},
        "sde": {"name": process},
        "net": {"name": "mlp", "width": dice.choice([64, 96]), "depth": dice.choice([2, 3])},
        "model": {"target": target, "data_std": 1.0},
        "loss": {"t_min": 1e-3, "stratified": dice.random() < 0.5},
        "training": {
            "steps": dice.choice([700, 900]), "batch_size": 128, "lr": 3e-3, "warmup_steps": 50,
            "decay": 0.5, "ema_sigma_rel": dice.choice([0.05, 0.1]), "sample_every": 0,
            "save_every": 100_000, "tensorboard": False, "log_every": 20, "sample_images": 1,
        },
        "sampling": {"method": "heun", "nfe": dice.choice([29, 39]), "batch_size": 500},
        "seed": dice.randrange(1000),
    }  # fmt: skip
    if process == "vp" and dice.random() < 0.3:
        config["sde"] |= {"beta_min": 0.1, "beta_max": dice.choice([15.0, 25.0])}
    if process == "ve":
        config["sde"] |= {"sigma_max": dice.choice([20.0, 40.0]), "sigma_min": 0.01}
    if target == "F":
        config["model"] |= {"time_input": "log_sigma"}
        config["loss"] |= {"weighting": "edm", "times": "lognormal",
                           "log_sigma_mean": -0.5, "log_sigma_std": 1.7}  # fmt: skip
        config["sampling"] |= {"grid": "karras"}
    if process == "flow":
        config["loss"] |= {"weighting": "output"}
    if images:
        config["data"] |= {"name": "fashion_mnist", "size": 16, "resize": "stretch"}
        config["net"] = {"name": "unet", "width": 24, "multipliers": (1, 2), "blocks": 1,
                         "attention": (), "patch": 2, "modulation": "scale_shift",
                         "group_channels": 8}  # fmt: skip
        config["training"] |= {"steps": 500, "batch_size": 64, "optimizer": "muon", "lr": 3e-3,
                               "muon_lr": 0.012, "ema_sigma_rel": 0.1}  # fmt: skip
        config["sampling"] |= {"nfe": 29}
    return config


def broken(fault: str, config: dict[str, Any], dice: random.Random) -> None:
    """Put the fault into a config."""
    training, target = config["training"], config["model"]["target"]
    if fault.startswith("values"):
        config["data"]["scaling"] = "none"
    elif fault == "deaf to t":
        config["net"] = {"name": f"{Deaf.__module__}.Deaf", "width": config["net"]["width"]}
    elif fault == "sigma_max too small":
        top = dice.choice([0.6, 1.0, 1.5])
        config["sde"] = {"name": "ve", "sigma_max": top, "sigma_min": 0.01}
    elif fault == "beta_max too small":
        config["sde"] = {"name": "vp", "beta_max": dice.choice([0.7, 1.5, 3.0])}
    elif fault == "learning rate too high":
        training |= {"lr": dice.choice([0.1, 0.3, 1.0]), "grad_clip": 0.0, "decay": 0.0}
        training |= {"muon_lr": 1.0} if "muon_lr" in training else {}  # of matrices, by Muon
    elif fault == "rate a hundred times":
        training |= {"lr": 100 * training["lr"]}
        training |= {"muon_lr": 100 * training["muon_lr"]} if "muon_lr" in training else {}
    elif fault in ("last layer left out", "network not trained"):
        config["net"] = {"name": f"{Left.__module__}.Left", "start": fault == "network not trained"}
    elif fault == "score negated":
        config["net"] = {"name": f"{Scaled.__module__}.Scaled", "width": config["net"]["width"]}
    elif fault == "few updates":
        training |= {"steps": dice.choice([10, 20, 40]), "warmup_steps": 5}
    elif fault.startswith("few items"):
        training |= {"steps": 3000}
        config["net"]["width"] = 128
    elif fault == "few steps":
        chosen = dice.choice([{"method": "euler", "steps": 3}, {"method": "heun", "steps": 2},
                              {"method": "euler_maruyama", "steps": 8}])  # fmt: skip
        config["sampling"] = {**chosen, "batch_size": 500}
    elif fault == "corrector too strong":
        config["sampling"] = {"method": "pc", "steps": 60, "batch_size": 500,
                              "options": {"snr": dice.choice([0.9, 1.5])}}  # fmt: skip
    elif fault == "t_min too large":
        config["sde"]["t_min"] = config["loss"]["t_min"] = dice.choice([0.2, 0.3])
    elif fault == "one noise level":
        config["loss"] = {"times": "lognormal", "log_sigma_mean": dice.choice([1.0, -2.5]),
                          "log_sigma_std": 0.15, "t_min": 1e-3}  # fmt: skip
        if target == "F":
            config["loss"]["weighting"] = "edm"
    elif fault == "data_std wrong":
        config["model"] |= {"target": "F", "time_input": "log_sigma",
                            "data_std": dice.choice([0.05, 20.0])}  # fmt: skip
        config["loss"] |= {"weighting": "edm"}
    elif fault == "dropout left on":
        config["net"] = {"name": f"{Dropping.__module__}.Dropping"}
    elif fault == "learning rate too low":
        training |= {"lr": dice.choice([1e-6, 3e-6]), "muon_lr": 1e-6}
    elif fault == "small noise neglected":
        config["loss"] = {"weighting": f"{neglectful.__module__}.neglectful", "t_min": 1e-3}
    elif fault == "tanh at the end":
        config["net"] = {"name": f"{Bounded.__module__}.Bounded"}
    elif fault.startswith("sound") and "optimizer" not in training:
        training |= {"steps": SOUND_STEPS}
    elif fault == "target scaled":
        config["net"] = {"name": f"{Scaled.__module__}.Scaled", "width": config["net"]["width"]}


def change_weights(folder: Path, fault: str) -> None:
    """Faults in the averaged weights."""
    kept = folder / "checkpoints"
    saved = checkpoints.load_checkpoint(kept)
    assert saved is not None
    step = checkpoints.steps_of(kept)[-1]
    if fault == "not finite":
        first = sorted(saved.ema)[0]
        saved.ema = {k: v.clone() for k, v in saved.ema.items()}
        saved.ema[first].view(-1)[0] = float("nan")
    else:
        start = {k: v.clone() for k, v in saved.model.items()}
        for value in start.values():
            if value.ndim > 1:
                nn.init.kaiming_uniform_(value)
        trained = 0.35 if fault == "average too long" else 0.0
        saved.ema = {k: v.lerp(saved.model[k], trained) for k, v in start.items()}
    saved.meta["step"] = step + 1
    checkpoints.save_checkpoint(kept, step + 1, saved, keep=1)


def edit(folder: Path, fault: str, dice: random.Random) -> None:
    """Faults of loading: the config says something else than training did."""
    file = folder / "config.json"
    saved = json.loads(file.read_text())
    config = saved["config"]
    if fault == "read as another target":
        own = config["model"]["target"]
        config["model"]["target"] = dice.choice([t for t in ("eps", "x0", "v") if t != own])
    elif fault == "read at other times":
        own = 999.0 if config["model"].get("time_input", "time") == "time" else 0.25
        config["model"]["time_scale"] = own * dice.choice([0.001, 0.3, 3.0])
    elif fault == "read with another process":
        config["sde"] = {"name": "vp", "beta_min": 0.1, "beta_max": dice.choice([5.0, 60.0])}
    elif fault in ("target scaled", "score negated"):
        config["net"]["factor"] = -1.0 if fault == "score negated" else dice.choice([0.7, 1.4])
    elif fault == "read with a process of another kind":
        config["sde"] = {"name": dice.choice(["ve", "flow", "cosine", "edm"])}
    elif fault == "beta doubled":
        config["sde"]["beta_max"] = 40.0
    elif fault == "F read as eps":
        config["model"]["target"] = "eps"
    file.write_text(json.dumps(saved))


def classes(folder: Path, fault: str, dice: random.Random) -> tuple[str, str]:
    """Data with classes whose labels are wrong in training; paths for training and diagnosis."""
    rng = np.random.default_rng(dice.randrange(10**6))
    y = rng.integers(5, size=6000)
    angle = 2 * np.pi * y / 5
    x = 1.4 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.3 * rng.normal(size=(6000, 2))
    wrong = rng.permutation(y) if fault == "labels shuffled" else (y + 1) % 5
    told = wrong if fault.startswith("labels") else y
    for name, labels in (("told", told), ("true", y)):
        arrays = {"train": x.astype(np.float32), "train_labels": labels}
        np.savez(folder.with_name(f"{folder.name}_{name}.npz"), **arrays)
    return tuple(str(folder.with_name(f"{folder.name}_{n}.npz")) for n in ("told", "true"))


SHOWN_OTHERS = (
    "items turned around", "values cut off", "data on 0 to 1", "scaled twice", "coordinates mixed",
    "other data",
)  # fmt: skip


def otherwise(fault: str, x: np.ndarray, dice: random.Random) -> np.ndarray:
    """Items (n, D), or uint8 images (n, 1, H, W), as they are shown when training saw x."""
    rng = np.random.default_rng(dice.randrange(10**6))
    if fault == "items turned around":
        turned = x[:, ::-1] * [1, -1] if x.shape[1] == 2 else x[:, ::-1]
        return x[:, :, ::-1] if x.ndim == 4 else turned.astype(x.dtype)
    if fault == "values cut off":
        return x.clip(-1.2, 1.2)
    if fault == "data on 0 to 1":
        return (x // 2 + 127).astype(x.dtype) if x.ndim == 4 else 0.5 * x + 0.5
    if fault == "scaled twice":
        return (x // 255).astype(x.dtype) if x.ndim == 4 else x / dice.choice([4.0, 127.5])
    if fault == "other data":
        return rng.permuted(x, axis=0)
    flat = x.reshape(len(x), -1)
    if x.ndim == 4:
        return flat[:, rng.permutation(flat.shape[1])].reshape(x.shape)
    return (flat @ np.linalg.qr(rng.normal(size=2 * flat.shape[1:]))[0]).astype(x.dtype)


def make(fault: str, seed: int, folder: Path, images: bool) -> str | None:
    """A run with the fault in a folder; returns the data to diagnose it with, None for its own."""
    dice = random.Random(f"{fault} {seed} {images}")
    config = recipe(dice, images)
    other = None
    plain = ("read as another target", "read with another process", "beta doubled",
             "read with a process of another kind")  # fmt: skip
    if fault in plain and not images:
        config["sde"], config["model"] = {"name": "vp"}, {"target": "v", "data_std": 1.0}
        config["loss"] = {"t_min": 1e-3}
        config["sampling"].pop("grid", None)
        if fault == "read as another target":
            config["model"]["target"] = dice.choice(["v", "eps", "x0"])
    if fault in ("beta_max too small", "sigma_max too small", "F read as eps") and not images:
        config["model"] = {"target": "F", "data_std": 1.0, "time_input": "log_sigma"}
        config["loss"] = {"t_min": 1e-3, "weighting": "edm"}
        config["sampling"].pop("grid", None)
    broken(fault, config, dice)
    if fault.startswith("labels") or fault == "sound classes":
        told, other = classes(folder, fault, dice)
        config["data"]["name"] = told
        config["conditioning"] = {"classes": True}
        config["net"] = {"name": f"{Told.__module__}.Told"}
    elif not images or fault in ("few items", *SHOWN_OTHERS):
        name = dice.choice(TOYS if fault != "items turned around" else UNEVEN)
        x = vectors(name, dice) if not images else load_data("fashion_mnist").raw.numpy()
        few = dice.choice([16, 32, 60])
        cut = few if fault.startswith("few items") else 7000
        scales = {"values not scaled": (dice.choice([20.0, 60.0]), 128.0),
                  "values tiny": (0.01, 0.0),
                  "values off centre": (1.0, dice.choice([6.0, -12.0]))}  # fmt: skip
        scale = scales.get(fault, (1.0, 0.0))
        x = x if images else (scale[0] * x + scale[1]).astype(np.float32)
        path = folder.with_name(f"{folder.name}.npz")
        held_out = {} if fault.endswith("none held out") else {"test": x[-1000:]}
        np.savez(path, train=x[:cut], **held_out)
        config["data"]["name"] = str(path)
        if fault in SHOWN_OTHERS:
            shown = path.with_name(f"{path.stem}_shown.npz")
            seen = otherwise(fault, x, dice)
            np.savez(shown, train=seen[:cut], test=seen[-1000:])
            other = str(shown)
            if fault == "values cut off":
                config["data"]["name"], other = other, None
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            train(config, folder, device="cpu")
        except UserError:  # what cannot be pictured, or has no gradient to go on with
            if not checkpoints.steps_of(folder / "checkpoints"):
                raise
        if fault in ("average of the start", "average too long", "not finite"):
            change_weights(folder, fault)
        edit(folder, fault, dice)
        (folder / "done").touch()
    return other
