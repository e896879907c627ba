"""A sampler measured on data whose score is known, as files: `--mode verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_sde import plotting
from score_sde.build import build_sde
from score_sde.checks import Count, Index, as_it_looks, checked
from score_sde.diagnosis.verify import VerifyReport, verify
from score_sde.restoration.verify import RestorationReport, verify_restoration
from score_sde.runs.figures import draw_beside
from score_sde.runs.outputs import check_place, json_text, write_beside
from score_sde.sampling import options_from_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked("")
def verify_to_files(
    config: Mapping[str, Any] | None = None,
    method: str = "heun",
    steps: Count | None = None,
    grid: str | None = None,
    options: Mapping[str, Any] | None = None,
    out: str | Path = "runs/verify",
    restoration: str | None = None,
    nfe: Count | None = None,
    calibrate: Index = 0,
) -> VerifyReport | RestorationReport:
    """`verify` a sampler on the process of a config (VP when None): <out>/<method>.json and .png.

    A report that is there and differs is not replaced: the new one's name has a checksum.

    steps: one number of steps in place of the usual ones. options: of the sampler. restoration: a
    method of `restore` to measure against exact posteriors instead, at nfe evaluations a draw (20
    and 60 when None), and its calibration over ``calibrate`` measurements.
    """
    check_place(out)
    sde = build_sde(config or {})  # VP unless told
    if restoration is not None:
        given = {k: as_it_looks(v) for k, v in (options or {}).items()}
        costs = (20, 60) if nfe is None else (nfe,)
        posterior = verify_restoration(restoration, sde, nfe=costs, calibrate=calibrate, **given)
        print(posterior)
        wanted = Path(out) / f"restoration_{posterior.method.rpartition('.')[2]}.json"
        print(f"wrote {write_beside(wanted, json_text(posterior.to_dict()))}")
        return posterior
    counts: dict[str, Any] = {} if steps is None else {"steps": (steps,)}
    texts = {name: value for name, value in (options or {}).items() if isinstance(value, str)}
    values = {**(options or {}), **options_from_text(method, texts)}
    report = verify(sde, method, grid=grid, **counts, **values)
    print(report)
    name = f"{report.method.rpartition('.')[2]}.json"
    path = write_beside(Path(out) / name, json_text(report.to_dict()))
    print(f"wrote {path}")
    _plot(report, path.with_suffix(".png"))
    return report


def _plot(report: VerifyReport, path: Path) -> None:
    """The report's errors as a picture, where matplotlib is installed and none is there."""
    curves = {"endpoint error": report.curve("error_rms"), "Wasserstein-2": report.curve("w2")}
    curves = {what: curve for what, curve in curves.items() if curve[0]}
    if not curves or path.exists():
        return

    def draw() -> Axes:
        ax = plotting.plot_convergence(curves, ylabel="error relative to the data")
        ax.set_title(report.method)
        return ax

    draw_beside(path, draw)
