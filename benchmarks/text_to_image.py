"""How well a run of `text_emoji` draws captions that it never saw, without a network as a judge.

    python benchmarks/text_to_image.py runs/text_emoji [--guidance 2] [--per_shape 8] [--seen 195]
    python benchmarks/text_to_image.py runs/text_emoji --parts free --picture free.png

The parts are shapes (A), free (prompts of no drawing, judged as A, and a picture of samples, each
beside the nearest training drawing), held_out (B, C, D) and seen (C, D).

A  the 6 held-out colours of shapes, 8 samples each: the mean colour of what is not white is nearest
   to the asked one of 9, and its mask has the largest overlap, over 0.75, with the asked shape.
B  the 99 held-out tones of persons: the mean colour over the pixels that differ between the tones
   of this person is nearest to the asked one of 6.
C  all 195 held-out captions: the nearest of all 3 785 drawings, in 8 x 8 mean colours and 16 x 16
   strengths of edges, has this caption (r@1), is among the 5 nearest (r@5), shows the same role
   (the caption without tone, man, woman and person).
D  the share that is nearer, pixel by pixel, to its own drawing than to any of the 3 590 for
   training, and that lies within 0.03 of one of these.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from score_sde import load
from score_sde.data.emoji import emoji, held_out
from score_sde.plotting.pictures import captioned_grid, save_png

TONE = re.compile(r":[^:]*skin tone$")
COLOURS = ("red", "blue", "orange", "yellow", "green", "purple", "brown", "black", "white")
PARTS = ("shapes", "free", "held_out", "seen")
FREE = ("a blue heart", "green square", "a purple circle", "brown heart", "an orange circle",
        "yellow square", "woman astronaut", "man firefighter: dark skin tone")  # fmt: skip
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def pictures(split: str) -> tuple[Tensor, list[str]]:
    """Drawings (N, 3, 32, 32) in [0, 1], and their captions."""
    images, captions = emoji(split, 32)
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255, list(captions)


def features(x: Tensor) -> Tensor:
    """8 x 8 mean colours and 16 x 16 strengths of edges, (B, 448)."""
    colours = torch.nn.functional.avg_pool2d(x, 4).flatten(1)
    grey = x.mean(1, keepdim=True)
    across, down = (
        grey.diff(dim=3, append=grey[..., -1:]),
        grey.diff(dim=2, append=grey[..., -1:, :]),
    )
    edges = torch.nn.functional.avg_pool2d((across**2 + down**2).sqrt(), 2).flatten(1)
    return torch.cat([colours, edges], 1)


def role(caption: str) -> str:
    """The caption without tone, man, woman and person."""
    words = TONE.sub("", caption).split()
    return " ".join(w for w in words if w not in ("man", "woman", "person"))


def mask(x: Tensor) -> Tensor:
    """What is not white, (B, 32, 32) bool."""
    return (x < 0.9).any(1)


def colour_and_shape(x: Tensor, caption: str, real: dict[str, Tensor]) -> tuple[bool, bool]:
    """Whether a picture (3, 32, 32) has the colour and the shape of its caption (A)."""
    colour = next(c for c in COLOURS if c in caption.split())
    shape = caption.split()[-1]
    palette = []
    for name in COLOURS:
        circle = real[f"large {name} circle" if f"large {name} circle" in real
                      else f"medium {name} circle"]  # fmt: skip
        here = mask(circle[None])[0]
        palette.append(circle[:, here].mean(1))
    here = mask(x[None])[0]
    if not here.any():
        return False, False
    nearest = (torch.stack(palette) - x[:, here].mean(1)).square().sum(1).argmin()
    overlaps = {}
    for name, model in (("circle", "large red circle"), ("square", "large red square"),
                        ("heart", "red heart")):  # fmt: skip
        other = mask(real[model][None])[0]
        overlaps[name] = float((here & other).sum() / (here | other).sum())
    best = max(overlaps, key=overlaps.__getitem__)
    return COLOURS[int(nearest)] == colour, best == shape and overlaps[best] > 0.75


def tone(x: Tensor, caption: str, real: dict[str, Tensor]) -> int:
    """How many tones away the nearest one is from the caption's (B); 9 for the yellow one."""
    base = TONE.sub("", caption)
    models = [real[f"{base}: {name} skin tone"] for name in TONES] + [real[base]]
    stack = torch.stack(models)
    here = (stack.amax(0) - stack.amin(0)).amax(0) > 0.1
    means = stack[:, :, here].mean(2)
    nearest = int((means - x[:, here].mean(1)).square().sum(1).argmin())
    asked = TONES.index(caption.rsplit(": ", 1)[1].removesuffix(" skin tone"))
    return 9 if nearest == 5 else abs(nearest - asked)


def rms(a: Tensor, b: Tensor) -> Tensor:
    """Root mean squared differences (A, B) of two sets of pictures."""
    square = torch.cdist(a.flatten(1), b.flatten(1)).square()
    return (square / a[0].numel()).sqrt()


def report(kind: str, x: Tensor, captions: list[str], train: Tensor, every: Tensor,
           names: list[str]) -> np.ndarray:  # fmt: skip
    """Print C and D of pictures (B, 3, 32, 32) of these captions; which are found first, (B,)."""
    places = torch.cdist(features(x), features(every)).argsort(1)[:, :5]
    found = [[names[j] for j in row] for row in places.tolist()]
    right = np.array([c == f[0] for c, f in zip(captions, found, strict=True)])
    five = np.mean([c in f for c, f in zip(captions, found, strict=True)])
    roles = np.mean([role(c) == role(f[0]) for c, f in zip(captions, found, strict=True)])
    own = torch.stack([every[names.index(c)] for c in captions])
    to_own = (x - own).flatten(1).square().mean(1).sqrt()
    to_train = rms(x, train).amin(1)
    nearer = float((to_own < to_train).double().mean())
    copies = float((to_train < 0.03).double().mean())
    print(f"C {kind}: r@1 {right.mean():.1%}, r@5 {five:.1%}, role {roles:.1%}, "
          f"own rms {float(to_own.median()):.3f} (n = {len(captions)})")  # fmt: skip
    print(f"D {kind}: nearer to its own than to any training drawing {nearer:.1%}, within 0.03 of "
          f"one {copies:.1%}, nearest at {float(to_train.median()):.3f}")  # fmt: skip
    return right


def shapes(drawn: Tensor, captions: list[str], n: int, real: dict[str, Tensor]) -> None:
    """Print A of pictures, n of each of the captions in turn."""
    both = []
    for i, caption in enumerate(captions):
        right = [colour_and_shape(x, caption, real) for x in drawn[i * n : (i + 1) * n]]
        both.append(sum(a and b for a, b in right))
        print(f"A {caption:20s} colour {sum(a for a, _ in right)}, shape "
              f"{sum(b for _, b in right)}, both {both[-1]} of {n}")  # fmt: skip
    most = sum(2 * b > n for b in both)
    print(f"A by majority {most} of {len(captions)}; both {sum(both)} of {len(drawn)}")


def beside_nearest(x: Tensor, captions: list[str], train: Tensor, names: list[str]) -> np.ndarray:
    """A grid of pictures with their captions, each beside the nearest training drawing."""
    nearest = rms(x, train).argmin(1).tolist()
    pairs = torch.stack([x, train[nearest]], 1).flatten(0, 1)
    said = [text for c, j in zip(captions, nearest, strict=True) for text in (c, f"({names[j]})")]
    return captioned_grid((pairs * 255).round().to(torch.uint8), said)


def main() -> None:
    """Print A to D of the parts that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--nfe", type=int, default=25)
    parser.add_argument("--method", default="dpmpp_2m")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--per_shape", type=int, default=8)
    parser.add_argument("--seen", type=int, default=195)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--prompts", nargs="+", default=FREE, help="of the part free")
    parser.add_argument("--picture", help="file for samples beside the nearest training drawings")
    asked = parser.parse_args()
    run = load(asked.run, device="cpu")
    train, train_names = pictures("train")
    test, test_names = pictures("test")
    every, names = torch.cat([train, test]), train_names + test_names
    real = dict(zip(reversed(names), reversed(every), strict=True))
    kinds, n = held_out(), asked.per_shape

    def draw(captions: list[str]) -> Tensor:
        x = run.sample(
            len(captions), asked.first_seed, prompt=captions, guidance=asked.guidance,
            method=asked.method, nfe=asked.nfe, grid="karras",
        ).x  # fmt: skip
        return run.data_spec.to_uint8(x).double() / 255

    print(f"{asked.run}, step {run.step}: guidance {asked.guidance:g}, {asked.method}, "
          f"{asked.nfe} evaluations of each score, seeds from {asked.first_seed}")  # fmt: skip
    if "shapes" in asked.parts:
        captions = list(kinds["colour x shape"].values())
        shapes(draw([c for c in captions for _ in range(n)]), captions, n, real)
    if "free" in asked.parts:
        captions = list(asked.prompts)
        told = [c for c in captions for _ in range(n)]
        drawn = draw(told)
        judged = [c for c in captions if c.split()[-1] in ("circle", "square", "heart")]
        if judged:
            rows = [i for i, c in enumerate(told) if c in judged]
            shapes(drawn[rows], judged, n, real)
        if asked.picture:
            few = [i for i in range(len(told)) if i % n < 2]
            grid = beside_nearest(drawn[few], [told[i] for i in few], train, train_names)
            save_png(grid, Path(asked.picture))
    if "held_out" in asked.parts:
        x, persons = draw(test_names), set(kinds["person x tone"].values())
        pairs = zip(x, test_names, strict=True)
        away = [tone(p, c, real) for p, c in pairs if c in persons]
        print(f"B tone right {np.mean([a == 0 for a in away]):.1%}, within one "
              f"{np.mean([a <= 1 for a in away]):.1%} (n = {len(away)})")  # fmt: skip
        report("held out", x, test_names, train, every, names)
    if "seen" in asked.parts:
        chosen = np.random.default_rng(0).choice(len(train_names), asked.seen, replace=False)
        seen = [train_names[i] for i in chosen]
        right = report("seen", draw(seen), seen, train, every, names)
        alike = Counter(role(c) for c in names)
        alone = np.array([alike[role(c)] == 1 for c in seen])
        print(f"C seen: r@1 of drawings that no other resembles {right[alone].mean():.1%} "
              f"(n = {alone.sum()}), of others {right[~alone].mean():.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
