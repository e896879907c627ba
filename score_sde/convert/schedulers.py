"""What a scheduler of diffusers says of the process: its alpha and sigma, its target, its label.

A scheduler's config mixes facts about the process that a network was trained on with settings of
a sampler. Only the former matter here; fields that nobody knows are refused by name, for a model
read with the wrong process draws noise without a word.

    chain      x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps, i = 0 .. T-1 at t = (i + 1)/T
    flow       x_t = (1 - t) x_0 + t eps; ``shift`` moves the grid, never the process (2403.03206)

With rescale_betas_zero_snr (2305.08891, algorithm 1) sqrt(abar) is shifted and stretched so that
it ends at 0. The end is 2^-24 here, as diffusers' Euler schedulers have it: sigma/alpha is 4096.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from score_sde.checks import check_names
from score_sde.convert.parts import ConversionError
from score_sde.processes.chain import BETA_TABLES

TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
CHAINS = (
    "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler",
    "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "UniPCMultistepScheduler",
    "DEISMultistepScheduler", "SASolverScheduler", "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
)  # fmt: skip
FLOWS = (
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
)  # fmt: skip
PROCESS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "prediction_type", "variance_type",
)  # fmt: skip
SAMPLER = (
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "clip_sample", "clip_sample_range",
    "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "final_sigmas_type",
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "shift",
    "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    "invert_sigmas", "shift_terminal", "time_shift_type", "stochastic_sampling", "skip_prk_steps",
    "interpolation_type", "algorithm_type", "solver_type", "solver_order", "lower_order_final",
    "euler_at_final", "lambda_min_clipped", "solver_p", "disable_corrector", "predict_x0",
    "timestep_type", "sigma_min", "sigma_max", "flow_shift", "noise_sampler_seed",
    "predictor_order", "corrector_order", "tau_func", "scale_factors", "upscale_mode",
)  # fmt: skip


def process_of(
    scheduler: Mapping[str, Any] | None, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the process (with its name) and of `ScoreModel`, from scheduler_config.json.

    notes: receives what had to be assumed. Raises ConversionError for a scheduler or a field that
    is not known.
    """
    if not scheduler:
        notes.append("no scheduler_config.json: the linear betas of 2006.11239, 1000 steps")
    said = dict(scheduler or {})
    kind = str(said.pop("_class_name", "DDPMScheduler"))
    if (
        kind in FLOWS
        or said.get("use_flow_sigmas")
        or said.get("prediction_type") == "flow_prediction"
    ):
        return _flow(said, kind)
    if kind not in CHAINS:
        raise ConversionError(
            f"the scheduler {kind} describes a process that is not known here; known are "
            f"{', '.join((*CHAINS[:6], '...', *FLOWS))}."
        )
    _check_fields(said, kind)
    steps = _steps(said)
    target = said.get("prediction_type") or "epsilon"
    check_names([target], TARGETS, "prediction_type", ConversionError)
    table = _table(said, steps)
    if said.get("rescale_betas_zero_snr"):
        if target == "epsilon":
            raise ConversionError(
                "rescale_betas_zero_snr with prediction_type epsilon: eps says nothing of x_0 "
                "where the signal is 0. Such a model predicts v; correct its scheduler's config."
            )
        table = zero_terminal(_betas(table, steps))
    sde = {"name": "table", "table": table, "steps": steps, "t_min": 1 / steps}
    model = {"target": TARGETS[target], "time_scale": float(steps), "time_shift": -1.0}
    return sde, model


def _steps(said: Mapping[str, Any]) -> int:
    steps = said.get("num_train_timesteps") or 1000
    if type(steps) is not int or not 1 <= steps <= 10**6:
        raise ConversionError(f"num_train_timesteps must be a number of steps (got {steps!r}).")
    return steps


def _flow(said: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The straight path; the network is told ``num_train_timesteps`` times t."""
    _check_fields({k: v for k, v in said.items() if k != "use_flow_sigmas"}, kind)
    steps = _steps(said)
    # At t = 1 alpha is 0; 1e-6 below a float64 state keeps ten digits of x_0.
    sde = {"name": "flow", "t_min": 1e-4, "t_max": 1 - 1e-6}
    return sde, {"target": "velocity", "time_scale": float(steps), "time_shift": 0.0}


def _check_fields(said: Mapping[str, Any], kind: str) -> None:
    """ConversionError for fields that are set and that nobody here knows."""
    unknown = sorted(
        name
        for name, value in said.items()
        if name not in (*PROCESS, *SAMPLER) and not name.startswith("_") and value
    )
    if unknown:
        raise ConversionError(
            f"the scheduler {kind} sets {', '.join(unknown)}, which may change the process and is "
            "not known here. If it does not matter, remove it from scheduler_config.json."
        )


def _table(said: Mapping[str, Any], steps: int) -> str | list[float]:
    """The betas of a scheduler: the name of a table, or the numbers."""
    schedule = said.get("beta_schedule") or "linear"
    if said.get("trained_betas") is not None:
        return [float(beta) for beta in said["trained_betas"]]
    low, high = float(said.get("beta_start", 1e-4)), float(said.get("beta_end", 0.02))
    if schedule == "squaredcos_cap_v2":
        return "cosine"
    if schedule == "linear" and (low, high, steps) == (1e-4, 0.02, 1000):
        return "linear"
    if schedule in ("linear", "scaled_linear"):
        power = 1 if schedule == "linear" else 2
        ends = (low ** (1 / power), high ** (1 / power))
        return (torch.linspace(*ends, steps, dtype=torch.float64) ** power).tolist()
    known = ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2")
    check_names([schedule], known, "beta_schedule", ConversionError)
    weights = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
    return (weights * (high - low) + low).tolist()


def _betas(table: str | list[float], steps: int) -> torch.Tensor:
    """The numbers (T,), float64."""
    if isinstance(table, str):
        return BETA_TABLES[table](steps)
    return torch.tensor(table, dtype=torch.float64)


def zero_terminal(betas: torch.Tensor) -> list[float]:
    """Betas whose sqrt(abar) keeps its first value and ends at 2^-12 (2305.08891, algorithm 1)."""
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    kept = root**2
    kept[-1] = 2.0**-24
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    return (1 - kept / before).tolist()
