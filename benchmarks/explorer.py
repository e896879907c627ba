"""How long the page of the explorer takes, as its user waits for it, and what of it is work.

    pip install -e ".[dev,explore]" && python benchmarks/explorer.py

Starts `--mode explore --workdir pretrained/fashion` as a command and asks it for what the controls
ask for. Prints seconds on the clock and seconds of processor that the page's process spent (more
than the clock's with several threads); the best of ``--rounds`` where a thing can be repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
ASKED = {"first page": 5.0, "16 garments, 10 steps": 1.5, "a field": 0.3, "drawn to learned": 20.0}


def cpu_of(process: psutil.Process) -> float:
    """Seconds of processor of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_served(url: str) -> bool:
    """Whether the page answers."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status == 200
    except OSError:
        return False


def show(name: str, clock: float, cpu: float) -> None:
    """One line of the table."""
    print(f"{name:24s} {clock:7.2f} s {cpu:7.2f} s of processor   (asked {ASKED[name]:g} s)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(ROOT / "main.py"), "--mode", "explore", "--workdir",
               "pretrained/fashion", "--port", str(port), "--device", "cpu"]  # fmt: skip
    begun = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=dict(os.environ))
    process = psutil.Process(server.pid)
    try:
        while not is_served(url):
            if server.poll() is not None:
                raise SystemExit("the page did not start")
            time.sleep(0.05)
        show("first page", time.monotonic() - begun, cpu_of(process))
        measure(url, process, rounds)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def measure(url: str, process: psutil.Process, rounds: int) -> None:
    """What the controls ask for, over HTTP as the browser asks."""
    from gradio_client import Client

    client = Client(url, verbose=False)

    def best(name: str, act: Callable[[], Any], rounds: int = rounds) -> None:
        found = []
        for _ in range(rounds):
            clock, cpu = time.monotonic(), cpu_of(process)
            act()
            found.append((time.monotonic() - clock, cpu_of(process) - cpu))
        show(name, min(c for c, _ in found), min(c for _, c in found))

    best("16 garments, 10 steps", lambda: client.predict(
        "dpmpp_2m_sde", 10, "ema", 0, 16, "any", "", "", 1, "nothing", 10, "ema", api_name="/draw"
    ))  # fmt: skip
    best("a field", lambda: client.predict("moons", "vp", 0.3, api_name="/move"))
    ring = [[1.5 * math.cos(a / 100), 1.5 * math.sin(a / 100)] for a in range(628)]
    drawn = json.dumps({"drawn": ring})
    best("drawn to learned", lambda: client.predict(drawn, 0.3, api_name="/learned"), rounds=1)


if __name__ == "__main__":
    main()
