"""Captions of samples: from a flag, from a file, and one for each of those that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from score_sde.checks import check_alone, check_count, check_size
from score_sde.conditioning.text import check_captions
from score_sde.runs.directory import RunError

if TYPE_CHECKING:
    from score_sde.runs.run import Run

Prompt = str | Sequence[str] | None


def takes_prompts(run: Run) -> bool:
    """Whether it was trained with captions."""
    return bool((run.config.get("conditioning") or {}).get("text"))


def prompts_of(run: Run, given: Prompt, n: int, what: str) -> tuple[str, ...] | None:
    """One caption for each of n samples; None without any."""
    if given is None:
        return None
    if not takes_prompts(run):
        raise RunError(
            f"{run.path} was trained without captions, so it takes no {what}. Train one with "
            "configs/text_emoji.py, or with conditioning.text on captioned data."
        )
    captions = [given] * n if isinstance(given, str) else list(given)
    if len(captions) > n:
        raise RunError(
            f"{len(captions)} captions of {what} are more than {n} samples: give --num_samples "
            f"{len(captions)} or more."
        )
    check_count(len(captions), n, f"captions of {what}", RunError)
    check_captions(captions)
    return tuple(captions)


def captions_asked(
    prompt: str | None, prompts: str | Path | None, num_samples: int | None
) -> tuple[list[str] | None, int]:
    """A caption for each sample, None without captions; and how many samples there are."""
    check_size(64 * (num_samples or 0), "so many samples")
    check_alone({"prompt": prompt, "prompts": prompts}, RunError)
    if prompts is not None:
        captions = read_prompts(prompts, num_samples)
        return captions, num_samples or len(captions)
    n = num_samples or 64
    return None if prompt is None else [prompt] * n, n


def read_prompts(path: str | Path, n: int | None) -> list[str]:
    """Captions of a text file, a line each; in turn for n samples, or once.

    RunError for a file that is not there, is empty, or has an empty line among others.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"the prompts of {path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise RunError(f"line {number} of {path} is empty: give a caption in each line.")
    if n is not None and len(lines) > n:
        raise RunError(
            f"{path} has {len(lines)} prompts, more than {n} samples: give --num_samples "
            f"{len(lines)}."
        )
    return [lines[i % len(lines)] for i in range(len(lines) if n is None else n)]
