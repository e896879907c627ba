"""A sampler measured on data whose score is known, as files: `--mode verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_sde import plotting
from score_sde.build import build_sde
from score_sde.diagnosis.posterior import RestorationReport, verify_restoration
from score_sde.diagnosis.verify import VerifyReport, save_report, verify
from score_sde.processes.sdes import VPSDE


def verify_to_files(
    config: Mapping[str, Any] | None = None,
    method: str = "heun",
    steps: int | None = None,
    grid: str | None = None,
    options: Mapping[str, Any] | None = None,
    out: str | Path = "runs/verify",
    restoration: str | None = None,
    nfe: int | None = None,
    calibrate: int = 0,
) -> VerifyReport | RestorationReport:
    """`verify` a sampler on the process of a config (VP when None): <out>/<method>.json and .png.

    steps: one number of steps in place of the usual ones. options: of the sampler. restoration: a
    method of `restore` to measure against exact posteriors instead, at nfe evaluations a draw (20
    and 60 when None), and its calibration over ``calibrate`` measurements.
    """
    sde = VPSDE() if config is None else build_sde(config)
    if restoration is not None:
        costs = (20, 60) if nfe is None else (nfe,)
        posterior = verify_restoration(
            restoration, sde, nfe=costs, calibrate=calibrate, **dict(options or {})
        )
        print(posterior)
        print(f"wrote {posterior.save(Path(out))}")
        return posterior
    counts: dict[str, Any] = {} if steps is None else {"steps": (steps,)}
    report = verify(sde, method, grid=grid, **counts, **dict(options or {}))
    print(report)
    print(f"wrote {save_report(report, Path(out))}")
    _plot(report, Path(out))
    return report


def _plot(report: VerifyReport, folder: Path) -> None:
    """The report's errors as a picture beside its JSON, where matplotlib is installed."""
    curves = {"endpoint error": report.curve("error_rms"), "Wasserstein-2": report.curve("w2")}
    curves = {what: curve for what, curve in curves.items() if curve[0]}
    if not curves:
        return
    try:
        figure, ax = plotting.subplots(width=4.6, height=3.6)
    except plotting.PlottingError as error:
        print(f"no plot: {error}")
        return
    plotting.plot_convergence(curves, ylabel="error relative to the data", ax=ax)
    ax.set_title(report.method)
    path = folder / f"{report.method}.png"
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")
