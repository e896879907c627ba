"""Files that somebody made to run code or to fill the memory: nothing runs, nothing grows."""

import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from launching import ended, start
from safetensors.torch import save_file

from score_sde import import_checkpoint, load
from score_sde.checks import UserError
from score_sde.nets import MLP

TOUCHED = "touched"


class Evil:
    """A pickle of it touches a file when it is loaded."""

    def __init__(self, call, *args):
        self.made = (call, args)

    def __reduce__(self):
        return self.made


def pickles(folder):
    """Pickles, as EDM's, that call, name or ask for what they should not."""
    mark = str(folder / TOUCHED)
    calls = {
        "system": Evil(os.system, f"touch {mark}"),
        "popen": Evil(subprocess.Popen, ["touch", mark]),
        "eval": Evil(eval, f"open({mark!r}, 'w')"),
        "exec": Evil(exec, f"open({mark!r}, 'w')"),
        "open": Evil(open, mark, "w"),
        "getattr": Evil(getattr, "text", "upper"),
        "import": Evil(__import__, "antigravity"),
        "rmtree": Evil(shutil.rmtree, str(folder / "precious")),
    }
    found = {f"call_{name}.pkl": pickle.dumps({"ema": evil}) for name, evil in calls.items()}
    found |= {
        "place.pkl": bytes.fromhex("80025d72000000102e"),
        "place_text.pkl": b"\x80\x02]p900000000\n.",
        "frame.pkl": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"].",
        "bytes8.pkl": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
        "text8.pkl": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.",
        "long4.pkl": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "persistent.pkl": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "extension.pkl": b"\x80\x02\x82\x01.",
        "truncated.pkl": pickle.dumps({"ema": list(range(1000))})[:500],
        "nested.pkl": b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
        "number.pkl": pickle.dumps(5),
        "nothing.pkl": b"",
    }
    return found


def saved(value):
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def packed(data, extra=0):
    """The same zip file with packed entries, one of them with ``extra`` million zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
            for entry in old.infolist():
                with new.open(entry.filename, "w") as file:
                    file.write(old.read(entry))
                    for _ in range(extra if "/data/0" in entry.filename else 0):
                        file.write(bytes(1 << 20))
    return buffer.getvalue()


def checkpoints(folder):
    """Files of torch.save that are bombs, damaged, or hold more than weights."""
    one = torch.ones(1)
    weights = {"time_embed.0.weight": one, "x": one}
    good = saved(weights)
    return {
        "evil.pt": saved({"time_embed.0.weight": Evil(os.system, f"touch {folder / TOUCHED}")}),
        "stride0.pt": saved(weights | {"y": one.as_strided((10**6, 10**6), (0, 0))}),
        "stride0_list.pt": saved([one.as_strided((10**11,), (0,))] * 10),
        "bomb.pt": packed(good, extra=1100),
        "packed.pt": packed(good),
        "cut.pt": good[: len(good) // 2],
        "zeros.pt": b"PK" + b"\0" * 100,
        "legacy.pt": b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02.",
        "text.pt": b"not a checkpoint",
    }


UNET = {
    "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3,
    "block_out_channels": [32, 32], "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip
CONFIGS = {
    "wide": {"block_out_channels": [10**9, 10**9]},
    "deep": {"layers_per_block": 10**9},
    "large": {"sample_size": 10**9},
    "negative": {"sample_size": -8},
    "classes": {"num_class_embeds": 10**9},
    "groups": {"norm_num_groups": 0},
    "names": {"_class_name": "os.system"},
    "blocks": {"down_block_types": ["subprocess.Popen"] * 2},
    "words": {"block_out_channels": "wide"},
    "nothing": {"in_channels": None},
}
SCHEDULERS = {
    "long": {"_class_name": "DDPMScheduler", "num_train_timesteps": 10**11},
    "unknown": {"_class_name": "EDMEulerScheduler"},
    "consistency": {"_class_name": "CMStochasticIterativeScheduler"},
    "code": {"_class_name": "os.system"},
}


def folders(folder):
    """Folders of diffusers, and what is said in their files."""
    shapes = {"conv_in": (32, 3, 3, 3), "conv_out": (3, 32, 3, 3)}
    shapes |= {f"down_blocks.{i}.resnets.0.conv1": (32, 32, 3, 3) for i in (0, 1)}
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    made = [(f"net_{name}", UNET | change, None) for name, change in CONFIGS.items()]
    made += [(f"scheduler_{name}", UNET, said) for name, said in SCHEDULERS.items()]
    for name, net, scheduler in made:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(net))
        if scheduler:
            (folder / name / "scheduler_config.json").write_text(json.dumps(scheduler))
        save_file(weights, folder / name / "diffusion_pytorch_model.safetensors")
    texts = {"deep_json": "[" * 200_000, "number_json": "7", "bytes_json": "\x80\xff"}
    texts["digits_json"] = '{"a": ' + "9" * 5000 + "}"
    for name, text in texts.items():
        shutil.copytree(folder / "net_wide", folder / name)
        (folder / name / "config.json").write_bytes(text.encode("latin1"))
    for name, header in (("header", (1 << 60).to_bytes(8, "little")), ("short", b"\1")):
        shutil.copytree(folder / "net_wide", folder / name)
        (folder / name / "config.json").write_text(json.dumps(UNET))
        (folder / name / "diffusion_pytorch_model.safetensors").write_bytes(header + b"{}")
    return [*(name for name, _, _ in made), *texts, "header", "short"]


RUNS = {
    "run_width": {"net": {"name": "mlp", "width": 10**6}},
    "run_depth": {"net": {"name": "mlp", "depth": 10**6}},
    "run_huge": {"net": {"name": "mlp", "width": 10**12}},
    "run_table": {"sde": {"name": "table", "steps": 10**12}},
    "run_code": {"sde": {"name": "subprocess.Popen", "args": ["touch", TOUCHED]}},
    "run_net": {"net": {"name": "os.system"}},
    "run_null": {"net": None, "sde": 5},
    "run_nan": {"sde": {"name": "vp", "beta_max": float("nan")}},
}


def runs(folder):
    """Exported folders with configs that ask for too much or for code."""
    for name, change in RUNS.items():
        (folder / name).mkdir()
        config = {"data": {"name": "moons"}, "sde": {"name": "vp"}, "net": {"name": "mlp"}} | change
        spec = {"shape": [2], "low": None, "high": None, "levels": None, "shift": 0.0, "scale": 1.0}
        facts = {"config": config, "data_spec": spec, "data_std": 1.0, "version": "0"}
        (folder / name / "config.json").write_text(json.dumps(facts))
        save_file(MLP(dim=2).state_dict(), folder / name / "model.safetensors")
    return list(RUNS)


def read_all(names: list[str]) -> None:
    """Read each in this folder, and write into found.txt what went otherwise than it must."""
    found = []
    for name in names:
        try:
            if name.startswith("run_"):
                load(Path(name), device="cpu")
            else:
                import_checkpoint(Path(name), Path("imported"), {})
            found.append(f"{name}: was read")
        except UserError as error:
            assert "\n" not in str(error), name
        except BaseException as error:
            found.append(f"{name}: {type(error).__name__}: {error}"[:300])
        status = Path("/proc/self/status").read_text()  # not getrusage, which knows of the parent
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        if peak > 1 << 30:
            found.append(f"{name}: {peak} bytes")
            break
    Path("found.txt").write_text("\n".join(found))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_hostile_files_run_nothing_and_stay_below_a_gigabyte(tmp_path):
    (tmp_path / "precious").mkdir()
    names = []
    for name, data in (pickles(tmp_path) | checkpoints(tmp_path)).items():
        (tmp_path / name).write_bytes(data)
        names.append(name)
    names += [*folders(tmp_path), *runs(tmp_path)]
    assert len(names) >= 30
    assert ended(start(read_all, names, folder=tmp_path)) == 0
    assert (tmp_path / "found.txt").read_text() == ""
    assert not (tmp_path / TOUCHED).exists() and (tmp_path / "precious").is_dir()
    assert not (tmp_path / "imported").exists()
