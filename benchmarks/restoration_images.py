"""Garments from what is left of them: how near is the mean, and how right the spread?

    python benchmarks/restoration_images.py runs/vp_fashion --items 16
    python benchmarks/restoration_images.py pretrained/fashion --methods hybrid --residuals

Lower half hidden, and means of 4 x 4 pixels, noise 0.05. residual: of the draws over the noise, 1
is right. PSNR of what the method says of E[x_0 | y] (`Restored.mean`), of the mean of the draws, of
the mean of the method's law (the error of the mean of the draws less their variance over their
number, over all items), and of single draws. energy: mean |x - x0| less
half of mean |x - x'|, a proper score, so that spread that is right is rewarded; lower is better.
spread: root mean square deviation of draws. behind: dB of the PSNR of `Restored.mean` behind the
first method's on the same items, with the standard error of the difference; and the same of the
means of the draws.
"""

import argparse

import torch

from score_sde import load, restore
from score_sde.nets import packed
from score_sde.restoration import Mask, Pool


def figures(x0, mean, x, span):
    """PSNR of means (said, of draws, of the law), of draws, energy, spread; x (G, n, C, H, W)."""
    G, n = x.shape[:2]
    off, flat = (x - x0[:, None]).flatten(2), x.flatten(2)
    of_law = ((x.mean(1) - x0).square() - x.var(1) / n).mean()
    pairs = torch.cdist(flat, flat).sum((1, 2)) / (n * (n - 1))
    return [
        float(psnr(x0, mean, span).mean()),
        float(psnr(x0, x.mean(1), span).mean()),
        float(-10 * (of_law / span**2).log10()),
        float(-10 * (off.square().mean(2) / span**2).log10().mean()),
        float((off.norm(dim=2).mean(1) - pairs / 2).mean()),
        float(x.var(1).mean().sqrt()),
    ]


def psnr(x0, x, span):
    """Of each item (G,)."""
    return -10 * ((x - x0).flatten(1).square().mean(1) / span**2).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--methods", default="auto,mmps,repaint,dps,ddnm,sdedit")
    parser.add_argument("--tasks", default="half,4x")
    parser.add_argument("--nfe", type=int, default=60)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--residuals", action="store_true", help="of the network, for C_nu")
    given = parser.parse_args()
    run = load(given.run, device="cpu")
    spec = run.data_spec
    x0 = spec.to_model(run.data("test").raw_items(range(given.items)))
    seen = torch.zeros(spec.shape[1:], dtype=torch.bool)
    seen[: spec.shape[1] // 2] = True
    print("| method | task | residual | PSNR, mean | of draws' mean | of law | of draws | energy | "
          "spread | cost | behind | draws' mean behind |\n" + "|---" * 12 + "|")  # fmt: skip
    span = (spec.high - spec.low) / spec.scale
    operators, some = {"half": Mask(seen), "4x": Pool(4)}, max(1, 64 // given.draws)
    for task in given.tasks.split(","):
        operator = operators[task]
        y = operator(x0)
        e = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        y = y + 0.05 * e
        print(f"| (the noise itself) | {task} | {float(e.square().mean()):.2f} |" + " |" * 9)
        first = None
        for method in given.methods.split(","):
            found = [
                restore(
                    run.sde, packed(run.score).bind(), y[i : i + some], operator, noise_std=0.05,
                    nfe=given.nfe, gaussian=run.gaussian, n=given.draws, batch_size=64,
                    seeds=range(i * given.draws, (i + 1) * given.draws), return_info=True,
                    method=None if method == "auto" else method,
                    residuals=run.residuals if given.residuals else None,
                )
                for i in range(0, given.items, some)  # some with seeds of their own
            ]  # fmt: skip
            x = torch.cat([part.x for part in found])
            cells = [float(torch.cat([part.residual for part in found]).mean())]
            mean = torch.cat([part.mean for part in found])
            cells += figures(x0, mean, x, span)
            each = torch.stack([psnr(x0, mean, span), psnr(x0, x.mean(1), span)])
            first = each if first is None else first
            off = first - each
            errors = off.std(1) / given.items**0.5
            behind = [f"{d:.2f} +- {e:.2f}" for d, e in torch.stack([off.mean(1), errors], 1)]
            numbers = " | ".join(f"{v:.2f}" for v in [*cells, found[0].nfe + found[0].products])
            print(f"| {method} | {task} | {numbers} | {' | '.join(behind)} |", flush=True)


if __name__ == "__main__":
    main()
