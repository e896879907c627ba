"""Freed memory stays with the process: its pages are not cleared anew."""

import os
import subprocess
import sys

import pytest

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
def test_pages_are_used_again():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = []
    for environment in (plain, plain | {"MALLOC_ARENA_MAX": "8"}):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True,
            text=True,
        )  # fmt: skip
        found.append(done.stdout.split())
    assert found[0][0] == "True" and int(found[0][1]) < 100
    assert found[1][0] == "False"  # the user's own settings count
