"""Reads tests/golden: outputs of other people's networks, for weights rebuilt from their names.

The files hold numbers, key names and settings of score_sde_pytorch (Apache-2.0), EDM
(CC BY-NC-SA 4.0) and diffusers (Apache-2.0), no code and no published weights. A case's `keys`
are names, shapes and the rule that draws each tensor; `calls` are inputs by formula, the name of
the output in the .npz, and the tolerance per sample.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402

CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))


class Case:
    """One network of a peer: settings, weights, calls and what it answered."""

    def __init__(self, name):
        self.meta = json.loads((GOLDEN / f"{name}.json").read_text())
        self.name, self.settings = name, self.meta["config"]
        self.peer = self.meta["class"].rpartition(".")[2]
        self.calls = self.meta["calls"]
        self.gold = np.load(GOLDEN / f"{name}.npz")

    def weights(self, constants=False):
        """The peer's state; with its constants too."""
        state, crc = {}, 0
        for key, shape, rule in self.meta["keys"]:
            if rule != "constant":
                array = recipe.make_weight(key, shape, rule)
                crc = zlib.crc32(array.astype("<f4").tobytes(), crc)
                state[key] = torch.from_numpy(array)
            elif constants and key == "sigmas":
                state[key] = self.sigmas()
            elif constants and key == "u":
                state[key] = torch.from_numpy(self.gold["const_u"])
            elif constants:
                row = torch.tensor(self.settings.get("resample_filter", [1, 1])).float()
                state[key] = (torch.outer(row, row) / row.sum() ** 2)[None, None]
        assert f"{crc:08x}" == self.meta["weights_check"]["crc32"]
        return state

    def sigmas(self):
        """The discrete noise levels of score_sde_pytorch, descending, float64."""
        model = self.settings["model"]
        ends = np.log([model["sigma_max"], model["sigma_min"]])
        return torch.linspace(*ends.tolist(), model["num_scales"], dtype=torch.float64).exp()

    def inputs(self, call):
        """x, the noise labels or sigmas, and a dictionary of class and augmentation labels."""
        given = call["inputs"]
        x = torch.from_numpy(recipe.make_input(given["x"]))
        times = next(given[k] for k in ("time", "sigma", "noise_labels") if k in given)
        condition = {
            name: torch.from_numpy(recipe.make_array(given[name]))
            for name in ("class_labels", "augment_labels")
            if given.get(name)
        }
        return x, torch.from_numpy(recipe.make_array(times)), condition

    def output(self, call, which="array"):
        """What the peer answered."""
        return torch.from_numpy(self.gold[call["output"][which]])


def gap(got, want):
    """The largest difference over the largest value, of the worst sample."""
    difference = (got - want).flatten(1).abs().amax(1)
    return float((difference / want.flatten(1).abs().amax(1)).max())
