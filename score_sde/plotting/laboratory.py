"""Figures of the laboratory: spectra of scores, and what happens over noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from score_sde.checks import check_count, checked
from score_sde.plotting.style import CYCLE, PlottingError, axes_or_new, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked
def plot_spectrum(
    spectra: Tensor | Mapping[str, Tensor], *, ax: Axes | None = None
) -> Axes:  # fmt: skip
    """Singular values of scores near a point, falling, relative to the largest (2212.12611).

    spectra: (D,) or (B, D), or several by the names in the legend; where a curve falls off is the
    number of directions that are normal to the data.
    """
    named = spectra if isinstance(spectra, Mapping) else {"": spectra}
    ax = axes_or_new(ax, 4.2, 3.0)
    for i, (name, values) in enumerate(named.items()):
        for k, row in enumerate(values.reshape(-1, values.shape[-1]).double().cpu()):
            label = name if k == 0 and name else None
            ax.semilogy(range(1, len(row) + 1), row / row[0], color=CYCLE[i % len(CYCLE)],
                        linewidth=1.2, label=label)  # fmt: skip
    ax.set(xlabel="number of the singular value", ylabel="relative to the largest")
    ax.grid(True)
    if any(named):
        legend(ax)
    return ax


@checked
def plot_over_noise(
    log_snr: Tensor, curves: Mapping[str, Tensor], *, log: bool = False, ax: Axes | None = None,
    **labels: Any,
) -> Axes:  # fmt: skip
    """Curves (K,) or (K, B) over the log signal-to-noise ratio (K,), from noise to data.

    Of (K, B) the mean over B is drawn, and its standard deviation as a band. labels: of the Axes,
    such as ylabel.
    """
    ax = axes_or_new(ax, 4.6, 3.0)
    x = log_snr.double().cpu()
    for i, (name, values) in enumerate(curves.items()):
        values = values.double().cpu()
        check_count(len(values), len(x), f"values of {name!r}", PlottingError, "noise levels")
        mean = values if values.ndim == 1 else values.mean(1)
        colour = CYCLE[i % len(CYCLE)]
        ax.plot(x, mean, color=colour, label=name, linewidth=1.6)
        if values.ndim == 2 and values.shape[1] > 1:
            spread = values.std(1)
            ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    ax.set(xlabel="log-SNR: noise left, data right", **labels)
    if log:
        ax.set_yscale("log")
    ax.grid(True)
    if len(curves) > 1:
        legend(ax)
    return ax
