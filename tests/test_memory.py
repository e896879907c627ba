"""Freed memory stays with the process: its pages are not cleared anew."""

import os
import subprocess
import sys

import pytest

from score_sde.runs.memory import keep_freed_memory

SCRIPT = """
import resource, torch
from score_sde.runs.memory import keep_freed_memory
print(keep_freed_memory())
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(8_000_000) for _ in range(4)]  # four pieces of 32 MB, one after the other alive
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_pages_are_used_again(monkeypatch):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=plain, check=True, capture_output=True, text=True
    )
    kept, faults = done.stdout.split()
    assert kept == "True" and int(faults) < 100
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    assert not keep_freed_memory()  # the user's own settings count
