"""The other road of inpainting: a network that is told the mask and what it shows.

    python benchmarks/trained_inpainting.py pretrained/fashion --seconds 180 --items 100

The network of a run, with the mask and the masked picture (noise 0.05) as two channels more beside
x_t, whose weights begin at 0, is trained on for so many seconds of processor time on one
measurement: the lower half hidden. Its draws of test items are then held to the same figures as
`restoration_images.py` has for restoration by the run itself, which was trained for nothing.
"""

import argparse
import time

import torch
from restoration_images import figures

from score_sde import build, load, sample
from score_sde.nets import packed
from score_sde.restoration import Mask
from score_sde.training import Trainer


def told(x0, seen, generator):
    """The mask and the measurement in place, (B, 2, H, W), and the measurement y."""
    y = Mask(seen)(x0)
    y = y + 0.05 * torch.randn(y.shape, generator=generator)
    picture = Mask(seen).adjoint(y, tuple(x0.shape[1:]))
    return torch.cat([seen.expand_as(picture).to(picture), picture], 1), y


def widened(run):
    """The model of a run with two more channels in, of no weight yet."""
    net = {**run.config["net"], "picture": 2}
    model = build.build_model({**run.config, "net": net}, run.data_spec)
    old = run.score.net.state_dict()
    weights = model.net.state_dict()
    for name, value in old.items():
        if weights[name].shape == value.shape:
            weights[name] = value
        else:  # the first convolution and whatever else sees the input: its own channels first
            weights[name] = torch.zeros_like(weights[name])
            weights[name][:, : value.shape[1]] = value
    model.net.load_state_dict(weights)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--seconds", type=float, default=180.0, help="of processor time")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--nfe", type=int, default=60)
    given = parser.parse_args()
    run = load(given.run, device="cpu")
    spec, generator = run.data_spec, torch.Generator().manual_seed(0)
    seen = torch.zeros(spec.shape[1:], dtype=torch.bool)
    seen[: spec.shape[1] // 2] = True
    model = widened(run)
    config = {**run.config["training"], "warmup_steps": 10, "decay": 0.0, "batch_size": 64}
    config |= {"muon_lr": 0.004, "lr": 1e-3, "minutes": 0.0}
    settings = build.build_training({"training": config})
    trainer = Trainer(model, build.build_objective(run.config), settings, data_std=run.data_std)
    data, started, losses = run.data("train"), time.process_time(), []
    while time.process_time() - started < given.seconds:
        rows = torch.randint(len(data), (settings.batch_size,), generator=generator).tolist()
        x0 = spec.to_model(torch.cat([data.raw_items(range(i, i + 1)) for i in rows]))
        trainer.update(x0, picture=told(x0, seen, generator)[0])
        losses.append(trainer.read().get("loss", float("nan")))
    last = losses[-50:]
    print(f"{trainer.step} updates, loss {losses[0]:.4f} to {sum(last) / len(last):.4f}")
    score = packed(model.with_net(trainer.ema.net))
    x0 = spec.to_model(run.data("test").raw_items(range(given.items)))
    picture, y = told(x0, seen, torch.Generator().manual_seed(0))
    x = sample(
        run.sde, score.bind(picture=picture.repeat_interleave(given.draws, 0)),
        (given.items * given.draws, *spec.shape), method="dpmpp_2m_sde", grid="karras",
        nfe=given.nfe, seeds=range(given.items * given.draws), batch_size=64,
    ).reshape(given.items, given.draws, *spec.shape)  # fmt: skip
    residual = (Mask(seen)(x.flatten(0, 1)) - y.repeat_interleave(given.draws, 0)) / 0.05
    span = (spec.high - spec.low) / spec.scale
    cells = [float(residual.square().mean()), *figures(x0, x, span), given.nfe]
    print("| residual | PSNR, mean | of law | of draws | energy | spread | cost |")
    print("| " + " | ".join(f"{v:.2f}" for v in cells) + " |")


if __name__ == "__main__":
    main()
