"""What `--help` and `--list_samplers` print, all of it read from the modes and the samplers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from score_sde.cli.modes import GENERAL, MODES, OPTION, SAMPLER
from score_sde.runs.choices import list_samplers
from score_sde.runs.configs import available_configs
from score_sde.runs.likelihood import OPTIONS

EXAMPLES = """
  score-sde --config vp_fashion --mode train
  score-sde --workdir runs/vp_fashion --mode sample --sampler heun --nfe 39 --num_samples 64
  score-sde --config vp_cifar:subvp --mode train --config.training.batch_size=64

In a clone `python main.py --config configs/vp_fashion.py` does the same.
"""


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
        lines += ["", f"Options (--option name=value): {', '.join(sorted(OPTIONS))}"]
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
