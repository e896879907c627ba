"""The command line: what there is to do, as data. Used by main.py and by `score-sde`.

A mode is a function of `runs`, what it does in a line, and the flags it takes, which are given to
the parameters of the same names; defaults are the function's own. A parameter ``config`` is given
all of --config as a dictionary, ``sampling`` only what --config.sampling.* changed, and
``workdir`` is named by the config where it is not given.

A mode of yours is one file in runs/ and one entry of `MODES`.
"""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from score_sde.checks import UserError, as_it_looks, did_you_mean, trusting
from score_sde.conditioning.rules import RULES
from score_sde.evaluation.features import FEATURES
from score_sde.flags import Flag, UsageError, parse
from score_sde.restoration import METHODS
from score_sde.runs import (
    diagnose,
    evaluate,
    exchange,
    latents,
    likelihood,
    sample,
    suggest,
    train,
    verify,
)
from score_sde.runs.configs import Config, available_configs
from score_sde.runs.restore import TASKS, restore_to_files
from score_sde.runs.sweep import AXES
from score_sde.sampling import SAMPLERS, list_samplers
from score_sde.sampling.grids import GRIDS
from score_sde.training import Interrupted
from score_sde.training.memory import keep_freed_memory


@dataclass(frozen=True)
class Mode:
    """One thing to do: a line about it, the flags it takes, and the function that does it."""

    about: str
    flags: tuple[Flag, ...]
    function: Callable[..., Any]

    def default(self, flag: Flag) -> Any:
        """The default of a flag, which is that of the function's parameter."""
        parameter = inspect.signature(self.function).parameters.get(flag.parameter)
        return inspect.Parameter.empty if parameter is None else parameter.default


CONFIG = Flag("config", str, "name or path of a config, with an optional :variant")
WORKDIR = Flag("workdir", str, "run directory; runs/<config name> if not given")
DEVICE = Flag("device", str, "auto, cpu, cuda, cuda:1, mps")
OVERWRITE = Flag("overwrite", bool, "delete the run in workdir and start anew")
RESUME = Flag(
    "resume", ("no", "yes", "auto"),
    "go on with what is there; auto: if there is something, and else start", alone="yes",
)  # fmt: skip
RESUME_CHANGED = Flag("resume_changed", bool, "resume also with other data, scaling or loss")
DATA = Flag("data", str, "set, folder or file, in place of config.data.name")
SPLIT = Flag("split", str, "which part of the data: train or test")
SAMPLER = Flag("sampler", str, f"one of {', '.join(SAMPLERS)}", "method")
STEPS = Flag("steps", int, "steps of the sampler")
NFE = Flag("nfe", int, "most network evaluations per sample or item")
GRID = Flag("grid", str, f"time grid: {', '.join(GRIDS)}, or a recipe.json")
OPTION = Flag("option", list, "one option of the method, name=value; may be repeated", "options")
NUM_SAMPLES = Flag("num_samples", int, "how many samples, or items of a split")
FIRST_SEED = Flag("first_seed", int, "sample i has seed first_seed + i")
BATCH_SIZE = Flag("batch_size", int, "samples or items at a time")
WEIGHTS = Flag("weights", str, "ema (averaged), model (as trained), another average's name")
CLASS_LABELS = Flag(
    "class_labels", str,
    "a class for all, some to take in turn (0,1,2), all; or data, the classes of a split",
)  # fmt: skip
RESTORATION = Flag("restoration", str, f"a method of restore: {', '.join(METHODS)}, or a path")
OUT = Flag("out", str, "folder for what is written; inside workdir if not given")
GUIDANCE = Flag(
    "guidance", float, "how strongly samples are led to what they are told: 1 is as trained"
)
STEERING = (
    Flag("prompt", str, "a caption for all samples, of a run that was trained with captions"),
    Flag("prompts", str, "a file of captions, a line each, taken in turn"),
    Flag("negative_prompt", str, "a caption to lead away from, with guidance"),
    GUIDANCE,
    Flag("guidance_interval", tuple, "log-SNR from,to within which guidance acts"),
    Flag("guidance_rule", tuple(RULES), "how, see docs/steering.md"),
    Flag("against", str, "directory of a weaker run to lead away from (autoguidance)"),
    Flag("upscale", str, "directory of a run that enlarges what this one draws"),
    Flag("init", str, "a picture to start from instead of from noise"),
    Flag("strength", float, "share of the steps taken from there, in (0, 1]; 0.6 if not given"),
)
ITEMS = (WORKDIR, CONFIG, DEVICE, WEIGHTS, OUT, CLASS_LABELS, DATA, SPLIT)

MODES: dict[str, Mode] = {
    "train": Mode(
        "train a model as a config says",
        (
            CONFIG, WORKDIR, RESUME, RESUME_CHANGED, OVERWRITE, DATA, DEVICE, SAMPLER, STEPS, NFE,
            GRID, OPTION, BATCH_SIZE, Flag("wandb", bool, "log to Weights & Biases as well"),
        ),
        train.train_as_asked,
    ),
    "sample": Mode(
        "draw from a trained run",
        (
            WORKDIR, CONFIG, DEVICE, NUM_SAMPLES, FIRST_SEED, WEIGHTS, OUT, CLASS_LABELS, SAMPLER,
            STEPS, NFE, GRID, OPTION, BATCH_SIZE, *STEERING,
        ),
        sample.sample_to_files,
    ),
    "ema": Mode(
        "make an average of the weights of another length from a run's snapshots",
        (
            WORKDIR, CONFIG, DEVICE,
            Flag("sigma_rel", float, "relative width of the average, for example 0.08"),
            Flag("step", int, "of the snapshot that it ends at; the last if not given"),
        ),
        train.make_average,
    ),
    "calibrate": Mode(
        "fit a time grid of adams to a run, a recipe for --grid",
        (
            WORKDIR, CONFIG, DEVICE, NFE, WEIGHTS,
            Flag("thorough", bool, "choose order and density by error too"),
            Flag("recipe", str, "file to write; recipe_<nfe>.json in the run if not given"),
        ),
        sample.calibrate_run,
    ),
    "likelihood": Mode(
        "nats or bits/dim of a split, with errors",
        (
            *ITEMS, NUM_SAMPLES, BATCH_SIZE, NFE, OPTION, RESUME,
            Flag("probes", int, "of Hutchinson's estimate"),
            Flag("repeats", int, "dequantisations of an item"),
            Flag("bound", likelihood.BOUNDS, "bounds beside it"),
        ),
        likelihood.likelihood_to_files,
    ),
    "evaluate": Mode(
        "distances of samples to data, with errors, and whether they are copies",
        (
            WORKDIR, CONFIG, DEVICE, NUM_SAMPLES, FIRST_SEED, WEIGHTS, OUT, CLASS_LABELS, SAMPLER,
            STEPS, NFE, GRID, OPTION, BATCH_SIZE, DATA, SPLIT,
            Flag("samples", str, "folder, .zip, .npy or .npz of samples, in place of a run's"),
            Flag("features", str, f"{', '.join(FEATURES)}, or a dotted path; by the images' shape"),
            Flag("reference", str, "statistics (.npz) in place of data"),
            Flag("save", str, "file for the statistics of the reference"),
            Flag("few", bool, "a Frechet distance of fewer samples than features, too"),
            Flag("measures", str, "which numbers, with commas; all that apply if not given"),
            GUIDANCE, Flag("sweep", AXES, "the same at several points, and the best of them"),
            Flag("values", str, "the points of --sweep, with commas"),
        ),
        evaluate.evaluate_to_files,
    ),
    "diagnose": Mode(
        "say why a run's samples are bad, with the evidence and the fix",
        (
            WORKDIR, CONFIG, DEVICE, WEIGHTS, OUT, DATA, NUM_SAMPLES,
            Flag("items", int, "how many items of the data to look at"),
        ),
        diagnose.diagnose_to_file,
    ),
    "suggest": Mode(
        "settings for data, with reasons, and a config that trains",
        (DATA, SPLIT, OUT),
        suggest.suggest_to_file,
    ),
    "encode": Mode(
        "latents of a split by the probability flow, and back",
        (*ITEMS, NUM_SAMPLES, NFE, Flag("temperature", float, "factor on the latents")),
        latents.encode_to_files,
    ),
    "interpolate": Mode(
        "ways between items of a split through their latents",
        (
            *ITEMS, NFE, Flag("pairs", int, "how many ways"),
            Flag("points", int, "of each way, its ends counted in"),
        ),
        latents.interpolate_to_files,
    ),
    "import": Mode(
        "make a run of another toolkit's checkpoint",
        (
            Flag("checkpoint", str, "file, folder or hub id to import", "path"),
            WORKDIR, CONFIG, OPTION, OVERWRITE, DEVICE,
        ),
        exchange.import_checkpoint,
    ),
    "export": Mode(
        "write a run's weights for other tools",
        (WORKDIR, CONFIG, OUT, WEIGHTS, Flag("format", exchange.LAYOUTS, "of the files", "layout")),
        exchange.export_run,
    ),
    "restore": Mode(
        "draw what pictures may have been from what is left of them",
        (
            Flag("task", TASKS, "what is measured of the pictures"),
            WORKDIR, CONFIG, DEVICE, WEIGHTS, OUT, CLASS_LABELS, DATA, SPLIT, NUM_SAMPLES, NFE,
            FIRST_SEED, BATCH_SIZE, OPTION,
            Flag("items", int, "how many items of the data to look at"),
            Flag("mask", str, "of inpaint: a picture, white where the pictures are seen"),
            Flag("factor", int, "of upscale, deblur and fourier"),
            Flag("noise", float, "standard deviation in the model's range"),
            RESTORATION,
        ),
        restore_to_files,
    ),
    "verify": Mode(
        "measure a sampler on data whose score is known, or a --restoration on exact posteriors",
        (
            CONFIG, SAMPLER, STEPS, GRID, OPTION, OUT, NFE,
            RESTORATION,
            Flag("calibrate", int, "measurements to draw for the calibration of --restoration"),
        ),
        verify.verify_to_files,
    ),
}  # fmt: skip
GENERAL = (
    Flag("mode", str, "what to do; train if not given"),
    Flag("help", bool, "show this help, or with --mode that of a mode"),
    Flag("list_samplers", bool, "list the samplers and their options"),
    Flag("trust", bool, "let names in a run's files run code that is not this package's"),
    Flag("traceback", bool, "show where in the code an error arose"),
)
EXAMPLES = """
  score-sde --config vp_fashion --mode train
  score-sde --workdir runs/vp_fashion --mode sample --sampler heun --nfe 39 --num_samples 64
  score-sde --config vp_cifar:subvp --mode train --config.training.batch_size=64

In a clone `python main.py --config configs/vp_fashion.py` does the same.
"""


@dataclass(frozen=True)
class Command:
    """A command line that is understood: a mode and the arguments of its function."""

    mode: str
    arguments: dict[str, Any]
    trust: bool = False

    def run(self) -> None:
        """Do it."""
        with trusting(True) if self.trust else nullcontext():
            MODES[self.mode].function(**self.arguments)


def understand(words: Sequence[str]) -> Command | str:
    """The command that the words after the program's name say, or the text they ask for.

    Raises UsageError.
    """
    known = {flag.name: flag for mode in MODES.values() for flag in mode.flags}
    known |= {flag.name: flag for flag in GENERAL}
    words = ["--help" if word == "-h" else word for word in words]
    named = re.search(r"(?m)^--?mode[=\n](\w+)$", "\n".join(words))
    asked = MODES.get(named.group(1) if named else "train")
    said = parse(words, known, [flag.name for flag in asked.flags] if asked else [])
    general = {flag.name: said.flags.pop(flag.name, None) for flag in GENERAL}
    name = general["mode"] or "train"
    if name not in MODES:
        hint = did_you_mean(name, MODES)
        raise UsageError(f"Unknown mode {name!r}.{hint} Available: {', '.join(MODES)}.")
    if general["help"]:
        return help_of(name, said.flags.get("sampler")) if general["mode"] else help_text()
    if general["list_samplers"]:
        return samplers_text()
    mode = MODES[name]
    for flag in said.flags:
        if known[flag] not in mode.flags:
            _refuse(flag, name)
    arguments = {known[flag].parameter: value for flag, value in said.flags.items()}
    if SAMPLER not in mode.flags and "options" in arguments:  # a sampler declares types of its own
        given = arguments["options"].items()
        arguments["options"] = {key: as_it_looks(text) for key, text in given}
    trust = bool(general["trust"])
    return Command(name, arguments | _of_config(name, said.config, arguments), trust)


def _refuse(flag: str, mode: str) -> None:
    takers = [name for name, other in MODES.items() if flag in {f.name for f in other.flags}]
    own = did_you_mean(flag, [f.name for f in MODES[mode].flags])
    raise UsageError(f"--mode {mode} takes no --{flag}, only {', '.join(takers)} do.{own}")


def _of_config(name: str, config: Config | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What --config gives to the function of a mode; UsageError for what is missing or in vain."""
    mode = MODES[name]
    found: dict[str, Any] = {}
    parameters = inspect.signature(mode.function).parameters
    if "workdir" in parameters and "workdir" not in given:
        if config is not None:
            found["workdir"] = str(Path("runs") / config.run_name)
        elif parameters["workdir"].default is inspect.Parameter.empty:
            raise UsageError("give --config or --workdir, for example:" + EXAMPLES)
    if config is not None and "config" in parameters:
        found["config"] = config.to_dict()
    elif config is not None:
        for field in config.changed:
            if not ("sampling" in parameters and field.startswith("sampling.")):
                raise UsageError(
                    f"--config.{field} has no effect in --mode {name}: the run's own config is "
                    "used. Drop it, or train another run."
                )
        if config.changed:
            found["sampling"] = {k.partition(".")[2]: v for k, v in config.changed.items()}
    for flag in mode.flags:
        if mode.default(flag) is inspect.Parameter.empty and flag.parameter in parameters:
            if flag.parameter not in {*given, *found}:
                raise UsageError(f"--mode {name} needs --{flag.name}: {flag.about}.")
    return found


# Help ---------------------------------------------------------------------------------------------


def help_text() -> str:
    """What `--help` prints."""
    lines = ["Train score-based diffusion models and sample from them.", ""]
    lines += ["Modes (--mode; `--mode NAME --help` shows the flags of one):"]
    lines += [f"  {name:12s} {mode.about}" for name, mode in MODES.items()]
    lines += ["", "Samplers (--sampler; options with --option name=value):"]
    lines += [f"  {row['name']:17s} {row['about']}" for row in list_samplers()]
    lines += ["", f"Configs (--config): {', '.join(available_configs())}"]
    lines += ["  a field is changed by --config.section.field=value", "", "Flags of every mode:"]
    lines += [f"  --{flag.name:14s} {flag.about}" for flag in GENERAL]
    lines += ["", "Flags of --mode train:", *_flag_lines("train")]
    return "\n".join(lines) + "\n\nExamples:" + EXAMPLES


def help_of(name: str, sampler: str | None = None) -> str:
    """What `--mode NAME --help` prints: its flags with their defaults, and the options."""
    mode = MODES[name]
    lines = [f"--mode {name}: {mode.about}", "", *_flag_lines(name)]
    if OPTION in mode.flags and SAMPLER in mode.flags:
        rows = [row for row in list_samplers() if sampler in (None, row["name"])]
        lines += ["", "Options of the samplers (--option name=value):"]
        lines += [f"  {row['name']:17s} {_options_line(row['options'])}" for row in rows]
    elif name == "likelihood":
        lines += ["", f"Options (--option name=value): {', '.join(sorted(likelihood.OPTIONS))}"]
    return "\n".join(lines)


def _flag_lines(name: str) -> list[str]:
    lines = []
    for flag in MODES[name].flags:
        default = MODES[name].default(flag)
        choices = f"{', '.join(flag.kind)}: " if isinstance(flag.kind, tuple) else ""
        end = f" [{default}]" if default not in (inspect.Parameter.empty, None, False) else ""
        lines.append(f"  --{flag.name:14s} {choices}{flag.about}{end}")
    return lines


def _options_line(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "none"


def samplers_text() -> str:
    """What `--list_samplers` prints."""
    lines = []
    for row in list_samplers():
        lines.append(f"{row['name']:17s} {row['about']}")
        kind = "stochastic" if row["stochastic"] else "deterministic"
        order = f" of order {row['order']}" if row["order"] else ""
        facts = f"{kind}{order}, {row['evaluations']} evaluations a step"
        facts += f"; options {_options_line(row['options'])}"
        lines.append(f"{'':17s} {facts}")
    return "\n".join(lines)


# Errors -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    0; 2 for an error that has a sentence, 1 for a mistake of ours; 130 after Ctrl-C (SIGINT) and
    143 after SIGTERM, a run being saved first.
    """
    words = list(sys.argv if argv is None else argv)[1:]
    if "" not in sys.path:
        sys.path.append("")  # for classes of yours by dotted path, from where you are
    keep_freed_memory()
    try:
        command = understand(words)
        if isinstance(command, str):
            print(command)
        else:
            command.run()
    except KeyboardInterrupt:
        return 130
    except Interrupted as stopped:
        return stopped.exit_code
    except Exception as error:
        if any(word.lstrip("-") in ("traceback", "traceback=true") for word in words):
            traceback.print_exc()
        sentence = sentence_of(error)
        print(f"error: {sentence or _mistake(error)}", file=sys.stderr)
        return 2 if sentence else 1
    return 0


def sentence_of(error: Exception) -> str | None:
    """What to tell a user of an error that is not a mistake of ours; None if it is one."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror or error}."
    no_room = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if no_room or (type(error) is RuntimeError and "allocate memory" in str(error)):
        return "out of memory. Take fewer at a time (--batch_size), or a smaller network."
    return None


def _mistake(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"this is a mistake of score_sde ({type(error).__name__}: {error}; "
        f"{Path(place.filename).name} line {place.lineno}). Please report it with what --traceback "
        "shows."
    )
