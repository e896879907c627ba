"""Settings of `UNet` that were published, or that proved themselves, by name."""

from __future__ import annotations

from typing import Any

_ROOT_HALF = 0.5**0.5

_DDPM: dict[str, Any] = dict(
    width=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), resample="conv", dropout=0.1,
    group_channels=1,
)  # fmt: skip
_DDPMPP: dict[str, Any] = dict(
    width=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(16,), dropout=0.1,
    skip_scale=_ROOT_HALF,
)  # fmt: skip
_NCSNPP: dict[str, Any] = _DDPMPP | dict(
    embedding="fourier", taps=(1, 3, 3, 1), progressive_input="residual"
)

# Parameters for images of 3 x 32 x 32, for adm 3 x 64 x 64.
PRESETS: dict[str, dict[str, Any]] = {
    "ddpm": _DDPM,  # 35 218 947: DDPM as 2011.13456 has it, one attention a level on the way up
    "ddpm_ho": _DDPM | dict(decoder_attention="every"),  # 35 746 307 (2006.11239)
    "ddpmpp": _DDPMPP,  # 61 804 419 (2011.13456, appendix H)
    "ddpmpp_deep": _DDPMPP | dict(blocks=8),  # 106 632 579
    "ncsnpp": _NCSNPP,  # 62 758 915 (2011.13456, appendix H)
    "ncsnpp_deep": _NCSNPP | dict(blocks=8),  # 107 587 075
    # 2105.05233, as 2206.00364 trains it on ImageNet at 64 x 64, where it is told the class.
    "adm": dict(
        width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), dropout=0.1,
        decoder_attention="every", head_channels=64, modulation="scale_shift", skip_conv=False,
        norm_eps=1e-5, embedding="positional_adm", class_embedding="output",
    ),
    # For CPUs: all arithmetic on a quarter of the pixels.
    "small": dict(
        width=48, multipliers=(1, 2), blocks=2, decoder_blocks=2, middle=("block",),
        resample="conv", attention=(8, 7), patch=2, modulation="scale_shift", group_channels=16,
    ),
}  # fmt: skip
