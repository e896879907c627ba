"""Settings of `UNet` and `Transformer` that were published, or that proved themselves, by name."""

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

_DIT: dict[str, Any] = dict(patch=2, modulation="each", time_endpoint=True)
_JIT: dict[str, Any] = dict(
    patch=16, norm="rms", mlp="swiglu", mlp_ratio=8 / 3, positions="rotary", qk_norm=True,
    bottleneck=128, class_tokens=32,
)  # fmt: skip

# Sizes as published; channels, size and classes are the data's.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "dit_s": _DIT | dict(width=384, depth=12, heads=6),  # 2212.09748, table 1
    "dit_b": _DIT | dict(width=768, depth=12, heads=12),
    "dit_l": _DIT | dict(width=1024, depth=24, heads=16),
    "dit_xl": _DIT | dict(width=1152, depth=28, heads=16),
    # 2310.00426: told a text of T5 tokens; half the output is a learned range of variances.
    "pixart": dict(
        width=1152, depth=28, heads=16, patch=2, modulation="shared", text_dim=4096,
    ),
    # 2209.12152, tables of appendix: time and class are tokens, long skips, learned places.
    "uvit_s": dict(
        width=512, depth=13, heads=8, patch=2, modulation="tokens", positions="learned",
        mlp="gelu", qkv_bias=False, skips=True, last_conv=True,
    ),
    "uvit_l": dict(
        width=1024, depth=21, heads=16, patch=2, modulation="tokens", positions="learned",
        mlp="gelu", qkv_bias=False, skips=True, last_conv=True,
    ),
    # 2511.13720, on pixels, with target x0 and the weighting of a velocity.
    "jit_b": _JIT | dict(width=768, depth=12, heads=12, class_tokens_from=4),
    "jit_l": _JIT | dict(width=1024, depth=24, heads=16, class_tokens_from=8),
    "jit_h": _JIT | dict(width=1280, depth=32, heads=16, class_tokens_from=10, bottleneck=256),
}  # fmt: skip

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "small": dict(width=32, multipliers=(1, 2), blocks=1, decoder_blocks=2, patch=2),  # for CPUs
    # 2112.10752, as Stable Diffusion has it: 83.7 million parameters, an eighth of the size.
    "kl_f8": dict(
        width=128, multipliers=(1, 2, 4, 4), blocks=2, decoder_blocks=3, patch=1, attention=True,
    ),
    "kl_f4": dict(
        width=128, multipliers=(1, 2, 4), blocks=2, decoder_blocks=3, patch=1, attention=True,
        latent_channels=3,
    ),
}  # fmt: skip

# 2312.02696, table 6: of latents 4 x 64 x 64.
EDM2: dict[str, dict[str, Any]] = {
    "xs": dict(width=128),
    "s": dict(width=192),
    "m": dict(width=256, dropout=0.1),
    "l": dict(width=320, dropout=0.1),
    "xl": dict(width=384, dropout=0.1),
    "xxl": dict(width=448, dropout=0.1),
}
