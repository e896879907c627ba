"""Whether a run is resumed as what it was begun as: the model must be, the rest is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from score_sde import distributed
from score_sde.runs.directory import RunDirectory, RunError

KEPT = (
    "sde",
    "net",
    "model",
    "autoencoder",
    "flow_map",
)  # sections of the model that a resumed run keeps
LEARNED = (
    "data",
    "loss",
    "reconstruction",
    "conditioning",
    "teacher",
)  # and of what it has learned so far
HARMLESS = {"data.workers", "data.strict", "training.optimizer"}


def check_same_run(directory: RunDirectory, facts: Mapping[str, Any], changed: bool) -> None:
    """Raise RunError that lists how a run to be resumed differs from what it was begun with.

    changed: data, loss and conditions may differ; the model may not.
    """
    saved = directory.read_config()
    old, new = saved.get("config") or {}, facts["config"]
    if (old.get("data") or {}).get("name") == "imported":
        raise RunError(f"{directory.path} was imported without its optimiser: no resuming it.")
    model = _differences(old, new, KEPT)
    optimizers = [(c.get("training") or {}).get("optimizer", "adam") for c in (old, new)]
    if optimizers[0] != optimizers[1]:
        model.append("training.optimizer ({} there, {} here)".format(*optimizers))
    if model:
        raise RunError(
            f"Checkpoint in {directory.path} does not fit: the config differs in "
            f"{', '.join(model)}. Use the old values or another --workdir."
        )
    learned = _differences(old, new, LEARNED)
    if not learned:
        learned = [
            f"{what} ({saved[key]} there, {facts[key]} here)"
            for key, what in (("items", "the number of items"), ("fingerprint", "their content"))
            if saved.get(key) is not None and saved[key] != facts[key]
        ]
    if not learned:
        there, here = {"spec": saved.get("data_spec")}, {"spec": facts["data_spec"]}
        here["spec"] = {key: here["spec"].get(key) for key in there["spec"] or {}}
        learned = _differences(there, here, ("spec",))
    if learned and not changed:
        raise RunError(
            f"The run in {directory.path} was trained on something else: {', '.join(learned)}. Use "
            "the old values, another --workdir, or --resume_changed to go on all the same."
        )
    for difference in learned:
        distributed.say(f"resumed with a change: {difference}")


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: tuple[str, ...]
) -> list[str]:
    """Fields that differ, with both values; a field that is missing is at None."""
    found = []
    for section in sections:
        there, here = old.get(section) or {}, new.get(section) or {}
        for key in sorted({*there, *here}):
            if there.get(key) != here.get(key) and f"{section}.{key}" not in HARMLESS:
                found.append(f"{section}.{key} ({there.get(key)} there, {here.get(key)} here)")
    return found
