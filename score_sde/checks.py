"""What is wrong with what somebody gave us, said in a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something given to us that cannot be used; the message says what, why, and what would do."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ " Did you mean 'heun'?" for a name that is close to one of the choices; "" for no such."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(name.lower(), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
