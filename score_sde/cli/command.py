"""From the words of a command line to a mode and the arguments of its function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_sde.checks import as_it_looks, did_you_mean, trusting
from score_sde.cli.flags import UsageError, Words, change_field, parse
from score_sde.cli.help import help_of, help_text, samplers_text
from score_sde.cli.modes import GENERAL, MODES, SAMPLER
from score_sde.runs.configs import Config, load_config
from score_sde.runs.directory import RunDirectory
from score_sde.runs.distill import default_workdir, student_config
from score_sde.runs.reading import read_facts


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
        for other in (*said.flags, *(field.name for field in said.fields)):
            raise UsageError(f"--list_samplers takes no --{other}: it lists all there are.")
        return samplers_text()
    for flag in said.flags:
        if known[flag] not in MODES[name].flags:
            _refuse(flag, name)
    return Command(name, _arguments(name, said), bool(general["trust"]))


def _refuse(flag: str, mode: str) -> None:
    takers = [name for name, other in MODES.items() if flag in {f.name for f in other.flags}]
    own = did_you_mean(flag, [f.name for f in MODES[mode].flags])
    do = "does" if len(takers) == 1 else "do"
    raise UsageError(f"--mode {mode} takes no --{flag}, only {', '.join(takers)} {do}.{own}")


def _arguments(name: str, said: Words) -> dict[str, Any]:
    """The arguments of a mode's function; UsageError for what is missing or in vain."""
    mode, flags = MODES[name], dict(said.flags)
    taken = inspect.signature(mode.function).parameters
    config = _config(flags.pop("config", None), flags, said)
    given = {flag.parameter: flags[flag.name] for flag in mode.flags if flag.name in flags}
    if SAMPLER not in mode.flags and "options" in given:  # a sampler declares types of its own
        given["options"] = {key: as_it_looks(text) for key, text in given["options"].items()}
    if "workdir" in taken and "workdir" not in given:
        if config is not None:
            given["workdir"] = str(Path("runs") / config.run_name)
        elif mode.needs("workdir"):
            raise UsageError(
                "give --config or --workdir, for example --config vp_fashion --mode train."
            )
    if config is not None and "changes" in taken and "config" not in taken:
        given["changes"] = config.changed
    elif config is not None and "config" in taken:
        given |= {"changes": config.changed} if config.of_run else {"config": config.to_dict()}
    elif config is not None and config.changed:
        given["sampling"] = _of_sampling(config.changed, name)
    for flag in mode.flags:
        if mode.needs(flag.parameter) and flag.parameter not in given:
            raise UsageError(f"--mode {name} needs --{flag.name}: {flag.about}.")
    return given


def _config(named: str | None, flags: Mapping[str, Any], said: Words) -> Config | None:
    """The config that is named, that a student of the teacher will have, or that of the run in
    workdir, with the fields as they are set."""
    config, workdir = None if named is None else load_config(named), flags.get("workdir")
    if said.fields and (teacher := flags.get("teacher")):
        config = Config(default_workdir(teacher), "", student_config(teacher), of_run=True)
    if config is None and said.fields and workdir and RunDirectory(Path(workdir)).is_run:
        config = Config(workdir, "", read_facts(Path(workdir)).config, of_run=True)
    for field in said.fields:
        if config is None:
            raise UsageError(f"--{field.name} changes a field of a config: give --config too.")
        change_field(config, field)
    return config


def _of_sampling(changed: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """Fields of --config.sampling by their own names; UsageError for those of other sections."""
    takes = "sampling" in inspect.signature(MODES[mode].function).parameters
    for field in changed:
        if not (takes and field.startswith("sampling.")):
            raise UsageError(
                f"--config.{field} has no effect in --mode {mode}: the run's own config is used. "
                "Drop it, or train another run."
            )
    return {field.partition(".")[2]: value for field, value in changed.items()}
