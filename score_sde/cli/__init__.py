"""The command line, as `main.py` and `score-sde` run it: `main`. What there is to do is `MODES`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from score_sde.checks import sentence_of
from score_sde.cli.command import Command as Command
from score_sde.cli.command import understand as understand
from score_sde.cli.modes import MODES as MODES
from score_sde.cli.modes import Mode as Mode
from score_sde.runs.memory import keep_freed_memory
from score_sde.runs.train import Interrupted


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


def _mistake(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"this is a mistake of score_sde ({type(error).__name__}: {error}; "
        f"{Path(place.filename).name} line {place.lineno}). Please report it with what --traceback "
        "shows."
    )
