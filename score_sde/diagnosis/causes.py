"""What can be wrong with a model: each check looks at what was measured for one cause.

A check of errors speaks only where its figure passes a bound that matters by four standard errors
(`Ratio.above`, `Ratio.below`), so that few items make it silent rather than wrong; those of plain
facts (range and scale of the data, ends of time, curl, peaks of the loss) have fixed bounds.
`HIDES` says which causes explain which others.
"""

from __future__ import annotations

from score_sde.diagnosis import in_network, in_settings, in_training
from score_sde.diagnosis.findings import Check

CHECKS: dict[str, Check] = {
    "data range": in_settings.data_range,
    "clipping": in_settings.clipped,
    "overflow": in_network.not_finite,
    "bounds of the output": in_network.bounded,
    "randomness of the output": in_network.random_output,
    "prediction type": in_network.target,
    "noise labels": in_network.labels,
    "items": in_network.items,
    "loading": in_network.loading,
    "data_std": in_settings.data_std,
    "scale of the output": in_network.gain,
    "EMA": in_training.ema,
    "learning rate": in_training.learning_rate,
    "use of what is shown": in_network.constant,
    "use of t": in_network.time,
    "classes": in_training.classes,
    "overfit": in_training.overfit,
    "sigma_max": in_settings.sigma_max,
    "what sigma_max wastes": in_settings.sigma_max_wasted,
    "t_min": in_settings.t_min,
    "noise levels": in_training.coverage,
    "length of training": in_training.undertrained,
    "sampler": in_settings.sampler,
    "identities": in_training.identities,
}
POOR = (
    "undertrained", "noise levels not trained", "noise levels neglected", "bad sampler settings",
    "not a posterior mean",
)  # fmt: skip
OTHERWISE = "loaded otherwise than trained"
HIDES: dict[str, tuple[str, ...]] = {  # what one cause explains is not said again
    "wrong data range": (
        *POOR, "sigma_max too small", "t_min too large", "learning rate too high", "ignored t",
        "wrong prediction type", "wrong noise labels", "output scaled", "wrong data_std",
        "EMA lags", "data not as in training", OTHERWISE,
    ),
    "output not finite": (
        *POOR, "learning rate too high", "overfit", "labels ignored", OTHERWISE, "EMA lags",
        "EMA never updated", "output is random", "output depends on the batch", "ignored t",
        "wrong noise labels", "wrong process", "wrong prediction type", "output scaled",
        "output is constant", "data not as in training",
    ),
    "output bounded": (
        *POOR, "learning rate too high", "output scaled", "wrong noise labels", "wrong process",
        "wrong prediction type", OTHERWISE,
    ),
    "output is random": (*POOR, "learning rate too high", "overfit", "labels ignored", OTHERWISE),
    "output depends on the batch": (
        *POOR, "learning rate too high", "overfit", "labels ignored", OTHERWISE,
    ),
    "data not as in training": (
        *POOR, "learning rate too high", "EMA lags", "overfit", "output scaled",
        "wrong noise labels", OTHERWISE,
    ),
    OTHERWISE: (*POOR, "learning rate too high", "EMA lags", "overfit", "labels ignored"),
    "wrong prediction type": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "wrong noise labels", "output scaled", "data not as in training", OTHERWISE,
    ),
    "wrong noise labels": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "output scaled", "sigma_max too small", "t_min too large", "data not as in training",
        OTHERWISE,
    ),
    "wrong process": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "output scaled", "sigma_max too small", "t_min too large", "data not as in training",
        OTHERWISE,
    ),
    "wrong data_std": (*POOR, "learning rate too high", "output scaled", "overfit", OTHERWISE),
    "output scaled": (*POOR, "learning rate too high", OTHERWISE),
    "EMA never updated": (*POOR, "ignored t", "overfit"),
    "EMA lags": POOR,
    "learning rate too high": (
        *POOR, "overfit", "labels ignored", "output is constant", "wrong data_std",
    ),
    "output is constant": (*POOR, OTHERWISE, "ignored t", "output scaled", "EMA lags", "overfit"),
    "ignored t": (*POOR, "learning rate too high", "output scaled", OTHERWISE),
    "labels ignored": POOR,
    "labels exchanged": (*POOR, "overfit", "learning rate too high", OTHERWISE),
    "noise levels not trained": ("undertrained", "bad sampler settings", "not a posterior mean"),
    "noise levels neglected": ("undertrained", "bad sampler settings", "not a posterior mean"),
    "undertrained": ("bad sampler settings", "not a posterior mean"),
    "sigma_max too large": ("bad sampler settings", "not a posterior mean"),
    "sigma_max too small": ("bad sampler settings", "not a posterior mean"),
    "t_min too large": ("bad sampler settings",),
    "overfit": (
        "bad sampler settings", "noise levels not trained", "noise levels neglected",
        "not a posterior mean",
    ),
}  # fmt: skip
