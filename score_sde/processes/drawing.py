"""Curves as an SVG text, for what notebooks show of processes and grids; no library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, EDGE = 300, 150, 24
COLOURS = ("#0395ec", "#fe5322", "#13a461")


def curves_svg(
    title: str, x: Sequence[float], curves: Mapping[str, Sequence[float]], across: str = "t"
) -> str:
    """A small figure of curves over x, with their names and the ends of both axes."""
    low, high = min(map(min, curves.values())), max(map(max, curves.values()))
    wide, tall = (x[-1] - x[0]) or 1.0, (high - low) or 1.0

    def point(a: float, b: float) -> str:
        right = EDGE + (a - x[0]) / wide * (WIDTH - 2 * EDGE)
        return f"{right:.1f},{HEIGHT - EDGE - (b - low) / tall * (HEIGHT - 2 * EDGE):.1f}"

    look = 'style="font: 11px sans-serif" fill="#7d7d7d"'
    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" {look}>']
    for i, (name, values) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join(point(a, b) for a, b in zip(x, values, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{EDGE + 60 * i}" y="14" fill="{colour}">{escape(name)}</text>')
    below = HEIGHT - 8
    parts += [
        f'<text x="{EDGE}" y="{below}">{x[0]:.3g}</text>',
        f'<text x="{WIDTH / 2}" y="{below}">{escape(across)}</text>',
        f'<text x="{WIDTH - EDGE}" y="{below}" text-anchor="end">{x[-1]:.3g}</text>',
        f'<text x="{WIDTH - EDGE}" y="14" text-anchor="end">{low:.3g} to {high:.3g}</text></svg>',
    ]
    return f"<div><code>{escape(title)}</code><br/>{''.join(parts)}</div>"
