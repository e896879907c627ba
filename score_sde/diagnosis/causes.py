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
    "randomness of the output": in_network.random_output,
    "prediction type": in_network.target,
    "noise labels": in_network.labels,
    "items": in_network.items,
    "data_std": in_settings.data_std,
    "scale of the output": in_network.gain,
    "EMA": in_training.ema,
    "learning rate": in_training.learning_rate,
    "use of t": in_network.time,
    "classes": in_training.classes,
    "overfit": in_training.overfit,
    "sigma_max": in_settings.sigma_max,
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
HIDES: dict[str, tuple[str, ...]] = {  # what one cause explains is not said again
    "wrong data range": (
        *POOR, "sigma_max too small", "t_min too large", "learning rate too high", "ignored t",
        "wrong prediction type", "wrong noise labels", "output scaled", "wrong data_std",
        "EMA lags", "data not as in training",
    ),
    "output is random": (*POOR, "learning rate too high", "overfit", "labels ignored"),
    "output depends on the batch": (*POOR, "learning rate too high", "overfit", "labels ignored"),
    "data not as in training": (
        *POOR, "learning rate too high", "EMA lags", "overfit", "output scaled",
        "wrong noise labels",
    ),
    "wrong prediction type": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "wrong noise labels", "output scaled", "data not as in training",
    ),
    "wrong noise labels": (
        *POOR, "learning rate too high", "ignored t", "EMA lags", "EMA never updated", "overfit",
        "output scaled", "sigma_max too small", "t_min too large", "data not as in training",
    ),
    "wrong data_std": (*POOR, "learning rate too high", "output scaled", "overfit"),
    "output scaled": (*POOR, "learning rate too high"),
    "EMA never updated": (*POOR, "ignored t", "overfit"),
    "EMA lags": POOR,
    "learning rate too high": (*POOR, "overfit", "labels ignored"),
    "ignored t": (*POOR, "learning rate too high", "output scaled"),
    "labels ignored": POOR,
    "labels exchanged": (*POOR, "overfit", "learning rate too high"),
    "noise levels not trained": ("undertrained", "bad sampler settings", "not a posterior mean"),
    "noise levels neglected": ("undertrained", "bad sampler settings", "not a posterior mean"),
    "undertrained": ("bad sampler settings", "not a posterior mean"),
    "sigma_max too small": ("bad sampler settings", "not a posterior mean"),
    "t_min too large": ("bad sampler settings",),
    "overfit": (
        "bad sampler settings", "noise levels not trained", "noise levels neglected",
        "not a posterior mean",
    ),
}  # fmt: skip
