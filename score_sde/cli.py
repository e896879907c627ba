"""The command line: flags and config files to `run`. Used by main.py and by `score-sde`."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from score_sde import plotting
from score_sde.build import ConfigError, build_sde, change_sampling
from score_sde.data import DataError
from score_sde.diagnosis.verify import VerifyReport, save_report, verify
from score_sde.distributed import DistributedError
from score_sde.processes.sdes import VPSDE
from score_sde.runs import exchange, latents, likelihood, sample, train
from score_sde.runs.run import RunError
from score_sde.sampling import SAMPLERS, ODEError, list_samplers
from score_sde.sampling.grids import GRIDS
from score_sde.training import CheckpointError, Interrupted, TrainingError
from score_sde.training.memory import keep_freed_memory

MODES = {
    "train": "train a model as a config says",
    "sample": "draw from a trained run",
    "ema": "make an average of the weights of another length (--sigma_rel) from a run's snapshots",
    "calibrate": "fit a time grid of adams to a run (--nfe), a recipe for --grid",
    "likelihood": "nats or bits/dim of a --split, with errors (--bound, --probes, --repeats)",
    "encode": "latents of a --split by the probability flow, and back",
    "interpolate": "ways between items of a --split through their latents",
    "import": "make a run of another toolkit's --checkpoint (--option size=64 and the like)",
    "export": "write a run's weights for other tools (--format, --out)",
    "verify": "measure a sampler (--sampler) on data whose score is known",
}
USER_ERRORS = (
    RunError, ConfigError, DataError, CheckpointError, TrainingError, DistributedError,
    ODEError, ValueError,
)  # fmt: skip
EXAMPLES = """
  score-sde --config vp_fashion --mode train
  score-sde --workdir runs/vp_fashion --mode sample --sampler heun --nfe 39 --num_samples 64
  score-sde --config vp_cifar:subvp --mode train --config.training.batch_size=64

In a clone `python main.py --config configs/vp_fashion.py` does the same.
"""


class UsageError(ValueError):
    """A command line that cannot be understood; the message says what to write instead."""


def _config_folders() -> list[Path]:
    """Where configs are looked up by name: here, in the installed package, beside it in a clone."""
    package = Path(__file__).parent
    return [Path("configs"), package / "configs", package.parent / "configs"]


def _available_configs() -> list[str]:
    found = {p.stem for folder in _config_folders() for p in folder.glob("[!_]*.py")}
    return sorted(found)


def find_config(argument: str) -> str:
    """A config by name or path, each with an optional :variant, as `path[:variant]`."""
    name, _, variant = argument.partition(":")
    suffix = f":{variant}" if variant else ""
    if Path(name).is_file():
        return name + suffix
    if "/" not in name and "\\" not in name:
        for folder in _config_folders():
            path = folder / f"{name.removesuffix('.py')}.py"
            if path.is_file():
                return f"{path}{suffix}"
    known = _available_configs()
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"No config {name!r}.{hint} By name there are: {', '.join(known)}.")


def _define_flags() -> flags.FlagValues:
    """Flags of their own, so that `main` can be called again in one process."""
    values = flags.FlagValues()
    text: dict[str, Any] = {"flag_values": values}
    config_flags.DEFINE_config_file("config", None, "Name or path of a config, :variant.", **text)
    flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.", **text)
    flags.DEFINE_string("workdir", None, "Run directory; runs/<config name> if not given.", **text)
    flags.DEFINE_enum(
        "resume", "no", ["no", "yes", "auto"],
        "Go on with the run in workdir; auto: if it has a checkpoint, and else start.", **text,
    )  # fmt: skip
    flags.DEFINE_bool("overwrite", False, "Delete the run in workdir and start anew.", **text)
    flags.DEFINE_string("data", None, "Set, folder or file, in place of config.data.name.", **text)
    flags.DEFINE_string("device", "auto", "auto, cpu, cuda, cuda:1, mps.", **text)
    flags.DEFINE_string("sampler", None, f"Sampler: {', '.join(SAMPLERS)}.", **text)
    flags.DEFINE_integer("steps", None, "Steps of the sampler.", **text)
    flags.DEFINE_integer("nfe", None, "Most network evaluations per sample, instead.", **text)
    flags.DEFINE_string("grid", None, f"Time grid: {', '.join(GRIDS)}, or a recipe.json.", **text)
    flags.DEFINE_multi_string("option", [], "Option of the sampler or import, name=value.", **text)
    flags.DEFINE_integer("num_samples", None, "How many samples (64), or items of a split.", **text)
    flags.DEFINE_integer("first_seed", 0, "Sample i has seed first_seed + i.", **text)
    flags.DEFINE_integer("batch_size", None, "Samples at a time.", **text)
    flags.DEFINE_string(
        "weights", "ema", "ema (averaged), model (as trained), another average's name.", **text
    )
    flags.DEFINE_string(
        "class_labels", None,
        "A class for all, some to take in turn (0,1,2), all; or data, the classes of a split.",
        **text,
    )  # fmt: skip
    flags.DEFINE_float("sigma_rel", None, "Relative width of the average of --mode ema.", **text)
    flags.DEFINE_bool("wandb", False, "Log to Weights & Biases as well.", **text)
    flags.DEFINE_string("out", None, "Folder for the samples; inside workdir if not given.", **text)
    flags.DEFINE_string("split", "test", "Data of likelihood, encode, interpolate.", **text)
    flags.DEFINE_integer("probes", None, "Of Hutchinson's estimate in --mode likelihood.", **text)
    flags.DEFINE_integer("repeats", 1, "Dequantisations of an item in --mode likelihood.", **text)
    flags.DEFINE_string("bound", "none", "Beside likelihood: chain, continuous, both.", **text)
    flags.DEFINE_float("temperature", 1.0, "Factor on latents in --mode encode.", **text)
    flags.DEFINE_string("checkpoint", None, "File, folder or hub id to import.", **text)
    flags.DEFINE_string("format", "safetensors", "Of an export: safetensors, diffusers.", **text)
    flags.DEFINE_bool("thorough", False, "Calibrate order and density by error too.", **text)
    flags.DEFINE_bool("list_samplers", False, "List the samplers and their options.", **text)
    flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.", **text)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", **text)
    return values


def help_text(values: flags.FlagValues) -> str:
    """What `--help` prints."""
    lines = ["Train score-based diffusion models and sample from them.", "", "Modes:"]
    lines += [f"  {name:10s} {about}" for name, about in MODES.items()]
    lines += ["", "Samplers (--sampler; options with --option name=value):"]
    lines += [f"  {row['name']:17s} {row['about']}" for row in list_samplers()]
    lines += ["", f"Configs (--config): {', '.join(_available_configs())}"]
    lines += ["  a field is changed by --config.section.field=value", "", "Flags:"]
    for name, flag in values._flags().items():
        if len(name) > 1 and not name.startswith("config."):
            lines.append(f"  --{name:14s} {flag.help}")
    return "\n".join(lines) + "\n\nExamples:" + EXAMPLES


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    """The flags of a command line; UsageError for anything that does not fit."""
    argv = arguments = _with_resume_value(argv)
    arguments = list(argv)
    for i, argument in enumerate(argv):
        match = re.fullmatch(r"--?config(=(.*))?", argument)
        if match and match.group(1):
            arguments[i] = f"--config={find_config(match.group(2))}"
            break
        if match and i + 1 < len(argv):
            arguments[i : i + 2] = [f"--config={find_config(argv[i + 1])}"]
            break
    values = _define_flags()
    before, sys.argv = sys.argv, arguments  # config_flags reads the overrides from sys.argv
    try:
        rest = values(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(_explain(str(error), arguments)) from error
    finally:
        sys.argv = before
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; flags look like --{rest[1]}=value.")
    return values


def _with_resume_value(argv: Sequence[str]) -> list[str]:
    """--resume alone means yes, as a flag does; `--resume auto` is one argument."""
    joined = re.sub(r"(?m)^--?resume\nauto$", "--resume=auto", "\n".join(argv)).split("\n")
    alone = {"--resume": "yes", "-resume": "yes", "--noresume": "no"}
    return [f"--resume={alone[a]}" if a in alone else a for a in joined]


def _explain(message: str, arguments: Sequence[str]) -> str:
    """A sentence from what absl or ml_collections say of a bad command line."""
    if "Traceback" in message:  # a config file raised; its own sentence comes last
        return message.strip().splitlines()[-1].partition(": ")[2]
    return _explain_key(arguments) or re.sub(r"\s+", " ", message).strip("\"' ")


def _explain_key(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first --config.* argument that names no field, if there is one."""
    config_only = [a for a in arguments[1:] if re.match(r"--?config=", a)]
    given = [m for a in arguments if (m := re.match(r"--?config\.([\w.]+)", a))]
    if not config_only or not given:
        return None
    values = _define_flags()
    before, sys.argv = sys.argv, [arguments[0], *config_only]
    try:
        values(sys.argv)
    finally:
        sys.argv = before
    fields = _flatten(values.config.to_dict())
    for match in given:
        key = match.group(1)
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]}?" if close else ""
            section = key.partition(".")[0]
            there = [f for f in fields if f.startswith(section + ".")] or list(fields)
            return f"{key}: unknown config key.{hint} There are {', '.join(there)}."
    return None


def _flatten(config: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    names: list[str] = []
    for key, value in config.items():
        nested = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        names += nested or [f"{prefix}{key}"]
    return names


def _options(pairs: Sequence[str]) -> dict[str, Any] | None:
    """name=value strings as a dictionary; values that look like numbers are numbers."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--option {pair!r} must read name=value.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options or None


def _workdir_of(values: flags.FlagValues, argv: Sequence[str]) -> Path:
    """--workdir, or runs/<config>[_<variant>]."""
    if values.workdir:
        return Path(values.workdir)
    for i, argument in enumerate(argv):
        match = re.fullmatch(r"--?config(=(.*))?", argument)
        if match:
            given = match.group(2) if match.group(1) else argv[i + 1]
            name, _, variant = given.partition(":")
            return Path("runs") / "_".join(filter(None, [Path(name).stem, variant]))
    raise UsageError("give --config or --workdir, for example:" + EXAMPLES)


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}


def _sampling_overrides(values: flags.FlagValues, argv: Sequence[str]) -> dict[str, Any]:
    """What --config.sampling.* flags change; other sections are the run's own and cannot change."""
    overrides = {}
    for argument in argv:
        match = re.match(r"--?config\.(\w+)\.?(\w*)", argument)
        if match and match.group(1) != "sampling":
            raise UsageError(
                f"{argument.partition('=')[0]} has no effect in --mode sample: the run's own "
                "config is used. Drop it, or train another run."
            )
        if match:
            overrides[match.group(2)] = values.config.sampling[match.group(2)]
    return overrides


def _plot_report(report: VerifyReport, folder: Path) -> None:
    """The report's errors as a picture beside its JSON, where matplotlib is installed."""
    curves = {"endpoint error": report.curve("error_rms"), "Wasserstein-2": report.curve("w2")}
    curves = {what: curve for what, curve in curves.items() if curve[0]}
    if not curves:
        return
    try:
        figure, ax = plotting.subplots(width=4.6, height=3.6)
    except plotting.PlottingError as error:
        print(f"no plot: {error}")
        return
    plotting.plot_convergence(curves, ylabel="error relative to the data", ax=ax)
    ax.set_title(report.method)
    path = folder / f"{report.method}.png"
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def _dispatch(argv: Sequence[str]) -> None:
    values = _parse(argv)
    if values.help:
        print(help_text(values))
        return
    if values.list_samplers:
        for row in list_samplers():
            print(f"{row['name']:17s} {row['about']}")
            kind = "stochastic" if row["stochastic"] else "deterministic"
            order = f" of order {row['order']}" if row["order"] else ""
            facts = f"{kind}{order}, {row['evaluations']} evaluations a step"
            facts += f", processes: {row['processes']}; options {row['options']}"
            print(f"{'':17s} {facts}")
        return
    if values.mode not in MODES:
        close = difflib.get_close_matches(values.mode, MODES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"Unknown mode {values.mode!r}.{hint} Available: {', '.join(MODES)}.")
    if values.mode == "verify":
        sde = build_sde(values.config.to_dict()) if values.config else VPSDE()
        given = {"grid": values.grid, **(_options(values.option) or {})}
        given["steps"] = (values.steps,) if values.steps else None
        report = verify(sde, values.sampler or "heun", **_given(given))
        print(report)
        folder = Path(values.out or values.workdir or "runs/verify")
        print(f"wrote {save_report(report, folder)}")
        _plot_report(report, folder)
        return
    workdir = _workdir_of(values, argv)
    if values.mode == "import":
        if not values.checkpoint:
            raise UsageError("--mode import needs --checkpoint, a file, folder or hub id.")
        exchange.import_checkpoint(
            values.checkpoint, workdir, _options(values.option), values.overwrite, values.device
        )
        return
    if values.mode == "export":
        exchange.export_run(workdir, values.out, values.format, values.weights)
        return
    if values.mode == "ema":
        if values.sigma_rel is None:
            raise UsageError("--mode ema needs --sigma_rel, for example --sigma_rel=0.08.")
        train.make_average(workdir, values.sigma_rel, values.steps, values.device)
        return
    if values.mode in ("likelihood", "encode", "interpolate"):
        _analyse(values, workdir)
        return
    if values.mode == "calibrate":
        sample.calibrate_run(
            workdir, values.nfe or 20, values.thorough, values.weights, values.out, values.device
        )
        return
    changes = {
        "method": values.sampler,
        "steps": values.steps,
        "nfe": values.nfe,
        "grid": values.grid,
        "batch_size": values.batch_size,
        "options": _options(values.option),
    }
    if values.mode == "sample":
        changes = {**_sampling_overrides(values, argv), **_given(changes)}
        sample.sample_to_files(
            workdir, 64 if values.num_samples is None else values.num_samples, values.first_seed,
            values.weights, values.out, values.device, values.class_labels, **changes,
        )  # fmt: skip
        return
    if values.config is None:
        raise UsageError("--mode train needs --config, for example:" + EXAMPLES)
    config = values.config.to_dict()
    if values.data:
        config["data"]["name"] = values.data
    config["sampling"] = change_sampling(config.get("sampling"), changes)
    if values.wandb:
        config.setdefault("training", {})["wandb"] = True
    resume = {"no": False, "yes": True}.get(values.resume, "auto")
    train.train(config, workdir, resume, values.overwrite, values.device)


def _analyse(values: flags.FlagValues, workdir: Path) -> None:
    """The modes that look at data through a run."""
    common = {"weights": values.weights, "out": values.out, "device": values.device}
    common |= {"class_labels": values.class_labels, "data": values.data}
    if values.mode == "likelihood":
        options = {"probes": values.probes, "nfe": values.nfe, **(_options(values.option) or {})}
        likelihood.likelihood_to_files(
            workdir, values.split, values.num_samples, bound=values.bound, repeats=values.repeats,
            batch_size=values.batch_size or 64, resume=values.resume != "no",
            options=_given(options), **common,
        )  # fmt: skip
        return
    nfe = {} if values.nfe is None else {"nfe": values.nfe}
    if values.mode == "encode":
        count = 64 if values.num_samples is None else values.num_samples
        latents.encode_to_files(
            workdir, values.split, count, temperature=values.temperature, **nfe, **common
        )
    else:
        pairs = 6 if values.num_samples is None else values.num_samples
        latents.interpolate_to_files(workdir, values.split, pairs, **nfe, **common)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    0; 2 for an error that has a sentence; 130 after Ctrl-C (SIGINT) and 143 after SIGTERM, a run
    being saved first.
    """
    argv = list(sys.argv if argv is None else argv)
    if "" not in sys.path:
        sys.path.append("")  # for classes of yours by dotted path, from where you are
    keep_freed_memory()
    try:
        _dispatch(argv)
    except KeyboardInterrupt:
        return 130
    except Interrupted as stopped:
        return stopped.exit_code
    except USER_ERRORS as error:
        if any(a.lstrip("-") in ("traceback", "traceback=true") for a in argv):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
