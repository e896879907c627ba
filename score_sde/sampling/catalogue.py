"""The table of samplers: adding one is its class and a line here.

`list_samplers`, the command line, the docs' table and the colours of plots are read from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from score_sde.checks import UserError, lookup, unknown
from score_sde.sampling.adams_sde import AdamsSDE
from score_sde.sampling.adaptive import RK45, AdaptiveSDE
from score_sde.sampling.correctors import CORRECTORS, Corrector, PredictorCorrector
from score_sde.sampling.flow_map import FlowMapSteps
from score_sde.sampling.method import Predictor
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
from score_sde.sampling.options import make, options_of, values_from_text
from score_sde.sampling.predictors import (
    DDIM,
    PREDICTORS,
    Ancestral,
    EDMStochastic,
    EulerMaruyama,
    ReverseDiffusion,
)
from score_sde.sampling.runge_kutta import RK4, Euler, Heun, Singlestep2, Singlestep3


class Sampler(NamedTuple):
    """A built-in sampler, and its colour in plots: one that no other has, legible on any page."""

    method: type[Predictor[Any]]
    colour: str


TABLE: dict[str, Sampler] = {
    "ancestral": Sampler(Ancestral, "#e10639"),
    "euler_maruyama": Sampler(EulerMaruyama, "#cd7d09"),
    "reverse_diffusion": Sampler(ReverseDiffusion, "#946900"),
    "pc": Sampler(PredictorCorrector, "#749c09"),
    "dpmpp_2m_sde": Sampler(SDEDPMSolverPP2M, "#f045d3"),
    "dpmpp_3m_sde": Sampler(SDEDPMSolverPP3M, "#b82ad2"),
    "adams_sde": Sampler(AdamsSDE, "#c2413a"),
    "exponential": Sampler(ExponentialSDE, "#b55606"),
    "edm_stochastic": Sampler(EDMStochastic, "#747500"),
    "adaptive_sde": Sampler(AdaptiveSDE, "#a78e10"),
    "ode": Sampler(AdaptiveODE, "#107aa1"),
    "rk45": Sampler(RK45, "#159cb7"),
    "euler": Sampler(Euler, "#7d7d7d"),
    "heun": Sampler(Heun, "#0266fb"),
    "rk4": Sampler(RK4, "#0395ec"),
    "ddim": Sampler(DDIM, "#13a461"),
    "lms": Sampler(LMS, "#087e83"),
    "dpm_solver": Sampler(DPMSolverM, "#d7058c"),
    "dpmpp_2m": Sampler(DPMSolverPP2M, "#8148fe"),
    "dpmpp_3m": Sampler(DPMSolverPP3M, "#b86afd"),
    "dpmpp_2s": Sampler(Singlestep2, "#7784fe"),
    "dpmpp_3s": Sampler(Singlestep3, "#018065"),
    "unipc": Sampler(UniPC, "#0da095"),
    "deis": Sampler(DEIS, "#1e8300"),
    "ipndm": Sampler(IPNDM, "#c0564f"),
    "adams": Sampler(Adams, "#fe5322"),
}
SAMPLERS: dict[str, type[Predictor[Any]]] = {name: row.method for name, row in TABLE.items()}
MAPS: dict[str, type[Predictor[Any]]] = {"flow_map": FlowMapSteps}
"""Methods for maps of the flow, which no score has."""
METHODS = {**SAMPLERS, **MAPS}
PARTS: dict[str, tuple[Mapping[str, type], type]] = {
    "predictor": (PREDICTORS, Predictor),
    "corrector": (CORRECTORS, Corrector),
}


def make_sampler(method: str | Predictor[Any], **options: Any) -> Predictor[Any]:
    """A method by name (a key of `SAMPLERS`) with its options, or a predictor as it is.

    A class of yours is named by its dotted path, "my_samplers.Mine". Raises UserError for an
    unknown name or option, naming the choices, and for an option of the wrong type.
    """
    made = make(METHODS, Predictor, method, "sampler", options)
    if not hasattr(made, "step") or isinstance(made, type):
        raise UserError(
            f"a method is a name or a Predictor; got {made!r}. Of a class give an instance, "
            "method=Heun()."
        )
    return made


def options_from_text(method: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Options of a sampler given as text, as values of the types that it declares.

    "false" is False for a flag, "3" is 3 for a number and "3" for a name. A name with a dot is an
    option of a part: {"predictor.eta": "0.5"} of pc gives {"predictor_options": {"eta": 0.5}}.
    Raises UserError for an unknown name and for text that is no value of its type.
    """
    cls = lookup(METHODS, method, "sampler", kind=Predictor)
    own = {name: text for name, text in texts.items() if "." not in name}
    values = values_from_text(cls, own, method)
    for name, text in texts.items():
        part, _, option = name.partition(".")
        if not option:
            continue
        if f"{part}_options" not in options_of(cls) or part not in PARTS:
            raise unknown(f"option of {method}:", name, options_of(cls))
        named, (table, kind) = values.get(part, options_of(cls)[part]), PARTS[part]
        chosen = lookup(table, named, part, kind=kind)
        value = values_from_text(chosen, {option: text}, named)
        values.setdefault(f"{part}_options", {}).update(value)
    make(METHODS, Predictor, method, "sampler", values)  # or a sentence
    return values


def needs_data_std(method: str | Predictor[Any]) -> bool:
    """Whether a method has the option data_std, the standard deviation of x_0."""
    cls = (
        lookup(METHODS, method, "sampler", kind=Predictor)
        if isinstance(method, str)
        else type(method)
    )
    return "data_std" in options_of(cls)


def list_samplers() -> list[dict[str, Any]]:
    """One row a sampler: name, stochastic, order, evaluations per step, options, about, ..."""
    rows = []
    for name, cls in SAMPLERS.items():
        method = cls()
        rows.append(
            {
                "name": name,
                "stochastic": method.stochastic,
                "order": None if method.stochastic else method.claimed_order,
                "evaluations": method.evaluations or "adaptive",
                "default_steps": method.default_steps,
                "default_grid": method.default_grid or "of the process",
                "options": options_of(cls),
                "about": (cls.__doc__ or "").strip().splitlines()[0],
            }
        )
    return rows


def samplers_table() -> str:
    """The samplers as a table in Markdown, stochastic ones first."""
    lines = ["| name | what it is | evaluations a step | order |", "|---|---|---|---|"]
    rows = list_samplers()
    for stochastic, title in ((True, "stochastic"), (False, "probability flow")):
        lines.append(f"| **{title}** | | | |")
        for row in rows:
            if row["stochastic"] == stochastic:
                cells = (f"`{row['name']}`", row["about"], row["evaluations"], row["order"] or "")
                lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"
