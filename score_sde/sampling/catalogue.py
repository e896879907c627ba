"""The samplers by name: what there is, and what can be set."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from score_sde.checks import lookup, unknown
from score_sde.sampling.adaptive import RK45, AdaptiveSDE
from score_sde.sampling.correctors import PredictorCorrector
from score_sde.sampling.multistep import (
    DEIS,
    IPNDM,
    LMS,
    Adams,
    DPMSolverM,
    DPMSolverPP2M,
    DPMSolverPP3M,
    ExponentialSDE,
    SDEDPMSolverPP2M,
    SDEDPMSolverPP3M,
    UniPC,
)
from score_sde.sampling.ode import AdaptiveODE
from score_sde.sampling.predictors import (
    DDIM,
    Ancestral,
    EDMStochastic,
    EulerMaruyama,
    Predictor,
    ReverseDiffusion,
)
from score_sde.sampling.runge_kutta import RK4, Euler, Heun, Singlestep2, Singlestep3

SAMPLERS: dict[str, type[Predictor]] = {
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "pc": PredictorCorrector,
    "dpmpp_2m_sde": SDEDPMSolverPP2M,
    "dpmpp_3m_sde": SDEDPMSolverPP3M,
    "exponential": ExponentialSDE,
    "edm_stochastic": EDMStochastic,
    "adaptive_sde": AdaptiveSDE,
    "ode": AdaptiveODE,
    "rk45": RK45,
    "euler": Euler,
    "heun": Heun,
    "rk4": RK4,
    "ddim": DDIM,
    "lms": LMS,
    "dpm_solver": DPMSolverM,
    "dpmpp_2m": DPMSolverPP2M,
    "dpmpp_3m": DPMSolverPP3M,
    "dpmpp_2s": Singlestep2,
    "dpmpp_3s": Singlestep3,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
    "adams": Adams,
}


def make_sampler(method: str | Predictor, **options: Any) -> Predictor:
    """A method by name (a key of `SAMPLERS`) with its options, or a predictor as it is.

    A class of yours is named by its dotted path, "my_samplers.Mine". Raises ValueError for an
    unknown name or option, naming the choices.
    """
    if not isinstance(method, str):
        if options:
            raise ValueError(f"give the options {sorted(options)} to the method itself: {method}.")
        return method
    cls = _find(method)
    known = list(_defaults(cls))
    for name in options:
        if name not in known:
            raise unknown(f"option of {method}:", name, known)
    return cls(**options)


def _find(method: str) -> type[Predictor]:
    """A built-in by its name, or anything importable by its dotted path."""
    return lookup(SAMPLERS, method, "sampler", kind=Predictor)


def _defaults(method: type[Predictor]) -> dict[str, Any]:
    """The options of a method and their defaults."""
    if not dataclasses.is_dataclass(method):
        return {}
    return {f.name: f.default for f in dataclasses.fields(cast(Any, method))}


def needs_data_std(method: str | Predictor) -> bool:
    """Whether a method has the option data_std, the standard deviation of x_0."""
    cls = _find(method) if isinstance(method, str) else type(method)
    return "data_std" in _defaults(cls)


def list_samplers() -> list[dict[str, Any]]:
    """One row a sampler: name, stochastic, order, processes, evaluations per step, options, ..."""
    rows = []
    for name, cls in SAMPLERS.items():
        method = cls()
        rows.append(
            {
                "name": name,
                "stochastic": method.stochastic,
                "order": None if method.stochastic else method.claimed_order,
                "processes": ", ".join(method.processes) if method.processes else "all",
                "evaluations": method.evaluations or "adaptive",
                "default_steps": method.default_steps,
                "default_grid": method.default_grid or "of the process",
                "options": _defaults(cls),
                "about": (cls.__doc__ or "").strip().splitlines()[0],
            }
        )
    return rows
