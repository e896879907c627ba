"""What there is to do, as data: a mode is a line about it, the flags it takes, and a function.

Flags are given to the function's parameters of the same names; defaults are the function's own. A
parameter ``config`` is given all of --config as a dictionary, ``sampling`` only what
--config.sampling.* changed, and ``workdir`` is named by the config where it is not given.

A mode of yours is one file in runs/ and one entry of `MODES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from score_sde import explorer
from score_sde.cli.flags import Flag
from score_sde.runs import (
    average,
    calibrate,
    classifier,
    diagnose,
    distill,
    evaluate,
    exchange,
    latents,
    likelihood,
    measuring,
    restore,
    sample,
    suggest,
    train,
    verify,
)
from score_sde.runs.choices import FEATURES, GRIDS, METHODS, RESIZES, RULES, SAMPLERS
from score_sde.runs.sweep import AXES


@dataclass(frozen=True)
class Mode:
    """One thing to do: a line about it, the flags it takes, and the function that does it.

    page: of the docs, that tells more.
    """

    about: str
    flags: tuple[Flag, ...]
    function: Callable[..., Any]
    page: str = ""

    def default(self, flag: Flag) -> Any:
        """The default of a flag, which is that of the function's parameter."""
        parameter = inspect.signature(self.function).parameters.get(flag.parameter)
        return inspect.Parameter.empty if parameter is None else parameter.default

    def needs(self, parameter: str) -> bool:
        """Whether the function has a parameter of this name and cannot do without it."""
        found = inspect.signature(self.function).parameters.get(parameter)
        return found is not None and found.default is inspect.Parameter.empty


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
STEP = Flag("step", str, "of the checkpoint: a number, or best (by held-out loss); else the newest")
CLASS_LABELS = Flag(
    "class_labels", str,
    "a class for all, some to take in turn (0,1,2), all; or data, the classes of a split",
)  # fmt: skip
RESTORATION = Flag("restoration", str, f"a method of restore: {', '.join(METHODS)}, or a path")
OUT = Flag("out", str, "folder for what is written; inside workdir if not given")
GUIDANCE = Flag(
    "guidance", float, "how strongly samples are led to what they are told: 1 is as trained"
)
PROMPT = Flag("prompt", str, "a caption for all samples, of a run that was trained with captions")
STEERING = (
    PROMPT,
    Flag("prompts", str, "a file of captions, a line each, taken in turn"),
    Flag("negative_prompt", str, "a caption to lead away from, with guidance"),
    GUIDANCE,
    Flag("guidance_interval", tuple, "log-SNR from,to within which guidance acts"),
    Flag("guidance_rule", tuple(RULES), "how, see docs/steering.md"),
    Flag(
        "guidance_option",
        list,
        "rescale, threshold or one of the rule, name=value",
        "guidance_options",
    ),
    Flag("against", str, "directory of a weaker run to lead away from (autoguidance)"),
    Flag("against_weights", str, "its weights; of this run itself, if --against is not given"),
    Flag("against_step", str, "its checkpoint: a number, or best; else the newest"),
    Flag("classifier", str, "directory of a classifier that leads to --class_labels"),
    Flag("upscale", str, "directory of a run that enlarges what this one draws"),
    Flag("prior", str, "directory of a run that makes embeddings of captions, see config unclip"),
    Flag("init", str, "a picture to start from instead of from noise"),
    Flag("strength", float, "share of the steps taken from there, in (0, 1]; 0.6 if not given"),
)
ITEMS = (WORKDIR, CONFIG, DEVICE, WEIGHTS, STEP, OUT, CLASS_LABELS, DATA, SPLIT)

MODES: dict[str, Mode] = {
    "train": Mode(
        "train as a config says: on pixels, latents, signals, volumes or vectors",
        (
            CONFIG, WORKDIR, RESUME, RESUME_CHANGED, OVERWRITE, DATA, DEVICE, SAMPLER, STEPS, NFE,
            GRID, OPTION, BATCH_SIZE, Flag("wandb", bool, "log to Weights & Biases as well"),
        ),
        train.train_as_asked,
        "training",
    ),
    "sample": Mode(
        "draw from a trained run",
        (
            WORKDIR, CONFIG, DEVICE, NUM_SAMPLES, FIRST_SEED, WEIGHTS, STEP, OUT, CLASS_LABELS,
            SAMPLER, STEPS, NFE, GRID, OPTION, BATCH_SIZE, *STEERING,
            Flag("film", bool, "write film.gif too, the way of the first 16 from noise"),
            Flag("tolerance", float, "as many steps of adams as each sample needs for this error"),
        ),
        sample.sample_to_files,
        "samplers",
    ),
    "distill": Mode(
        "make a map of a run's flow, for samples in 1 to 4 evaluations",
        (
            Flag("teacher", str, "directory of the run whose flow is mapped"),
            WORKDIR, STEPS, GUIDANCE, RESUME, RESUME_CHANGED, OVERWRITE, DEVICE,
        ),
        distill.distill,
        "few_steps",
    ),
    "train_classifier": Mode(
        "train a classifier of noisy samples, for --classifier",
        (CONFIG, WORKDIR, RESUME, RESUME_CHANGED, OVERWRITE, DATA, DEVICE),
        classifier.train_classifier,
        "steering",
    ),
    "ema": Mode(
        "make an average of the weights of another length from a run's snapshots",
        (
            WORKDIR, CONFIG, DEVICE,
            Flag("sigma_rel", float, "relative width of the average, for example 0.08"),
            STEP,
        ),
        average.make_average,
        "training",
    ),
    "calibrate": Mode(
        "fit a time grid of adams to a run, a recipe for --grid",
        (
            WORKDIR, CONFIG, DEVICE, NFE, WEIGHTS, STEP, NUM_SAMPLES,
            Flag("thorough", bool, "choose order and density by error too"),
            Flag("recipe", str, "file to write; recipe_<nfe>.json in the run if not given"),
        ),
        calibrate.calibrate_run,
        "samplers",
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
        "likelihood",
    ),
    "evaluate": Mode(
        "distances of samples to data, with errors, and whether they are copies",
        (
            WORKDIR, CONFIG, DEVICE, NUM_SAMPLES, FIRST_SEED, WEIGHTS, STEP, OUT, CLASS_LABELS,
            SAMPLER, STEPS, NFE, GRID, OPTION, BATCH_SIZE, DATA, SPLIT,
            Flag("samples", str, "folder, .zip, .npy or .npz of samples, in place of a run's"),
            Flag("resize", RESIZES, "how --samples of another size are brought to the data's"),
            Flag("features", str, f"{', '.join(FEATURES)}, or a dotted path; by the images' shape"),
            Flag("reference", str, "statistics (.npz, .pkl), or data as --data takes them"),
            Flag("save", str, "file for the statistics of the reference"),
            Flag("per_class", bool, "and the measures of every class by itself"),
            Flag("few", bool, "a Frechet distance of fewer samples than features, too"),
            Flag("measures", str, "which numbers, with commas; all that apply if not given"),
            GUIDANCE, Flag("sweep", AXES, "the same at several points, and the best of them"),
            Flag("values", str, "the points of --sweep, with commas"),
        ),
        evaluate.evaluate_to_files,
        "evaluation",
    ),
    "diagnose": Mode(
        "say why a run's samples are bad, with the evidence and the fix",
        (
            WORKDIR, CONFIG, DEVICE, WEIGHTS, STEP, OUT, DATA, NUM_SAMPLES, GUIDANCE,
            Flag("items", int, "how many items of the data to look at"),
        ),
        diagnose.diagnose_to_file,
        "evaluation",
    ),
    "suggest": Mode(
        "settings for data, with reasons, and a config that trains",
        (DATA, SPLIT, OUT),
        suggest.suggest_to_file,
        "data",
    ),
    "encode": Mode(
        "latents of a split by the probability flow, and back",
        (*ITEMS, NUM_SAMPLES, NFE, Flag("temperature", float, "factor on the latents")),
        latents.encode_to_files,
        "likelihood",
    ),
    "interpolate": Mode(
        "ways between items of a split through their latents",
        (
            *ITEMS, NFE, Flag("pairs", int, "how many ways"),
            Flag("points", int, "of each way, its ends counted in"),
        ),
        latents.interpolate_to_files,
        "likelihood",
    ),
    "import": Mode(
        "make a run of a checkpoint: score_sde_pytorch, EDM, diffusers, guided-diffusion, Ho",
        (
            Flag("checkpoint", str, "file, folder or hub id to import", "path"),
            WORKDIR, CONFIG, OPTION, OVERWRITE, DEVICE,
        ),
        exchange.import_checkpoint,
        "other_libraries",
    ),
    "explore": Mode(
        "open a page in the browser: draw, restore, look into score fields, compare runs",
        (
            WORKDIR, CONFIG, DEVICE, Flag("port", int, "of the page; the first free one from 7860"),
            Flag("host", str, "who may come; 127.0.0.1 is this computer alone"),
        ),
        explorer.explore,
        "looking",
    ),
    "export": Mode(
        "write a run's weights for other tools",
        (
            WORKDIR, CONFIG, OUT, WEIGHTS, STEP,
            Flag("format", exchange.LAYOUTS, "of the files", "layout"),
            Flag("dtype", tuple(exchange.DTYPES), "of the weights"),
        ),
        exchange.export_run,
        "other_libraries",
    ),
    "restore": Mode(
        "inpaint, colourise, upscale, deblur: draws of what was hidden, without training",
        (
            Flag("task", measuring.TASKS, "what is measured of the pictures"),
            WORKDIR, CONFIG, DEVICE, WEIGHTS, STEP, OUT, CLASS_LABELS, DATA, SPLIT, NUM_SAMPLES,
            NFE, FIRST_SEED, BATCH_SIZE, OPTION,
            Flag("items", int, "how many items of the data to look at"),
            Flag("measurement", str, "y of your own, .npy or a picture, in place of --data"),
            Flag("mask", str, "of inpaint: a picture, white where the pictures are seen"),
            Flag("factor", int, "of upscale, deblur and fourier"),
            Flag("noise", float, "standard deviation in the model's range"),
            RESTORATION, PROMPT, GUIDANCE,
        ),
        restore.restore_to_files,
        "restoration",
    ),
    "verify": Mode(
        "measure a sampler on data whose score is known, or a --restoration on exact posteriors",
        (
            CONFIG, SAMPLER, STEPS, GRID, OPTION, OUT, NFE,
            RESTORATION,
            Flag("calibrate", int, "measurements to draw for the calibration of --restoration"),
        ),
        verify.verify_to_files,
        "choosing",
    ),
}  # fmt: skip
GENERAL = (
    Flag("mode", str, "what to do; train if not given"),
    Flag("help", bool, "show this help, or with --mode that of a mode"),
    Flag("list_samplers", bool, "list the samplers and their options"),
    Flag("trust", bool, "let names in a run's files run code that is not this package's"),
    Flag("traceback", bool, "show where in the code an error arose"),
)
