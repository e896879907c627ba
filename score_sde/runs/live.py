"""Models of the diffusers library as scores: their own network, our process, samplers, guidance.

    run = load_diffusers(pipeline)                 # a live pipeline, a folder, or a hub id
    x = run.sample(4, prompt="a red fox", guidance=7.5, method="dpmpp_2m", steps=20)
    score = run.score.bind(**run.condition("a red fox", 4))      # a score like any other

The process and the target come from the scheduler's config (`schedulers`), the network stays as
it is, the autoencoder is the codec. A pipeline's text encoders turn captions into the condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde.build import build_sde
from score_sde.checks import UserError, check_count, checked, library, read_json, reading
from score_sde.conditioning.guidance import guide
from score_sde.convert.live_autoencoder import codec_of
from score_sde.convert.live_nets import FAMILIES, Condition, LiveNet
from score_sde.convert.live_text import PROMPTS
from score_sde.convert.parts import ConversionError
from score_sde.convert.schedulers import process_of
from score_sde.models import ScoreModel
from score_sde.nets.codec import Codec
from score_sde.sampling import SDE, ScoreFn, sample


@dataclass(eq=False)
class LiveRun:
    """A model of the diffusers library; used like a run.

    sde, score: the process, and the score of its states. codec: from states to pixels, None for
    models of pixels. shape: of one state. flow: whether the path is straight, t from 0 to almost
    1, and not a chain. pipeline: what it came from.
    """

    sde: SDE
    score: ScoreModel
    codec: Codec | None
    shape: tuple[int, ...]
    flow: bool
    pipeline: Any

    def __repr__(self) -> str:
        name = type(self.score.net.module).__name__  # type: ignore[union-attr]
        return f"LiveRun({name}, {self.sde.__class__.__name__}, states {self.shape})"

    def condition(self, prompt: str | Sequence[str], n: int) -> Condition:
        """What the network is told of n samples: one caption for all, or one for each."""
        prompts = [prompt] * n if isinstance(prompt, str) else list(prompt)
        check_count(len(prompts), n, "prompts")
        kind = type(self.pipeline).__name__
        encode = next((f for name, f in PROMPTS.items() if name in kind), None)
        if encode is None:
            raise UserError(
                f"{kind} has no text encoder that is known here; bind the condition yourself: "
                f"run.score.bind({', '.join(f'{name}=...' for name in self.score.net.taken)})."  # type: ignore[union-attr]
            )
        with torch.no_grad():
            return encode(self.pipeline, prompts, self.shape)

    def nothing(self, n: int, negative: str = "") -> Condition:
        """What guidance goes away from: the condition of no caption, or of a negative one."""
        told = self.condition(negative, n)
        if not negative and getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False):
            told |= {key: torch.zeros_like(told[key]) for key in ("text", "pooled")}
        return told

    def published(self, steps: int) -> dict[str, Any]:
        """The pipeline's own grid and end, as arguments ``grid`` and ``denoise`` of `sample`.

        Schedulers that end at sigma = 0 (or alpha = 1) take the denoised state there; the others
        stop at the chain's first level.
        """
        scheduler, said = self.pipeline.scheduler, self.pipeline.scheduler.config
        scheduler.set_timesteps(steps)
        if self.flow:
            times = [min(float(sigma), self.sde.t_max) for sigma in scheduler.sigmas[:-1]]
            return {"grid": times, "denoise": True}
        times = [(float(i) + 1) / said.num_train_timesteps for i in scheduler.timesteps]
        clean = said.get("set_alpha_to_one", said.get("final_sigmas_type", "zero") == "zero")
        ends = [] if clean or times[-1] <= self.sde.t_min else [self.sde.t_min]
        return {"grid": times + ends, "denoise": bool(clean)}

    def sample(
        self,
        n: int,
        prompt: str | Sequence[str] | None = None,
        class_labels: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        guidance: float = 1.0,
        negative_prompt: str = "",
        pixels: bool = True,
        **settings: Any,
    ) -> Tensor:
        """n samples: pixels (n, C, H, W) in [-1, 1], or states where ``pixels`` is False.

        prompt or class_labels: what they show. guidance: the scale w of `guide`, away from no
        caption, or from negative_prompt, in one doubled batch. settings: of `sample`, as method and
        steps. A flow's state is float64, for its data's share of the
        state is 1e-6 at the start.
        """
        told: Condition = {} if class_labels is None else {"class_labels": class_labels}
        told |= {} if prompt is None else self.condition(prompt, n)
        score: ScoreFn = self.score.bind(**told)
        if guidance != 1:
            other = {} if prompt is None else self.nothing(n, negative_prompt)
            score = guide(score, self.score.bind(**other), guidance)
        dtype = torch.float64 if self.flow else torch.float32
        z = sample(
            self.sde, score, (n, *self.shape), seeds=seeds, dtype=dtype,
            device=next(self.score.parameters()).device, **settings,
        ).float()  # fmt: skip
        return z if self.codec is None or not pixels else self.codec.decode(z)


@checked
def load_diffusers(source: Any, device: str = "cpu") -> LiveRun:
    """A model of the diffusers library as a run: a live pipeline, its folder, or a hub id.

    Raises ConversionError, before any work, for a missing library (the extra is [diffusers]), for
    networks and schedulers that are not known, and for half precision on a CPU.
    """
    pipeline = _pipeline(source) if isinstance(source, str | Path) else source
    module = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    kind = type(module).__name__
    if module is None or kind not in FAMILIES:
        raise ConversionError(
            f"{type(pipeline).__name__} has {'no network' if module is None else f'a {kind}'}; "
            f"known are {', '.join(FAMILIES)}."
        )
    if device.startswith("cpu") and next(module.parameters()).dtype == torch.float16:
        raise ConversionError(
            f"the weights of this {kind} are float16, in which a CPU is slow and overflows: load "
            "them with torch_dtype=torch.float32, or give a device."
        )
    sde_options, model_options = process_of(_said(pipeline.scheduler), [])
    name, sde = sde_options["name"], build_sde({"sde": sde_options})
    if kind == "FluxTransformer2DModel":
        model_options["time_scale"] = 1.0  # it multiplies by a thousand itself
    channels = getattr(module.config, "in_channels", None) or module.config.in_channels
    channels = channels // 4 if kind == "FluxTransformer2DModel" else channels
    vae = getattr(pipeline, "vae", None)
    learned = getattr(module.config, "out_channels", channels) == 2 * channels
    model = ScoreModel(LiveNet(module), sde, learned_variance=learned, **model_options)
    shape = (channels, *_size(module.config))
    codec = None if vae is None else codec_of(vae)
    return LiveRun(sde, model.to(device), codec, shape, name == "flow", pipeline)


def _said(scheduler: Any) -> dict[str, Any]:
    """Its config with its class, which the config of a live one need not name."""
    return {"_class_name": type(scheduler).__name__, **dict(scheduler.config)}


def _size(said: Any) -> tuple[int, int]:
    """(H, W) of a state; Flux does not say, 128 is that of its pictures of 1024 pixels."""
    size = getattr(said, "sample_size", None) or 128
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _pipeline(source: str | Path) -> Any:
    """A pipeline from its folder or hub id, by the library itself; none of its own code is run."""
    what = "models of diffusers need the library"
    diffusers = library("diffusers", "diffusers", what, ConversionError)
    if (index := Path(source) / "model_index.json").is_file():
        said = read_json(index, dict[str, Any], "of a pipeline of diffusers", ConversionError)
        _check_names(index, said, diffusers)
    with reading(source, "a pipeline of diffusers", ConversionError):
        return diffusers.DiffusionPipeline.from_pretrained(str(source), trust_remote_code=False)


def _check_names(index: Path, said: Mapping[str, Any], diffusers: Any) -> None:
    """ConversionError for a part of a library that diffusers would import because a file says so.

    Newer versions refuse that themselves.
    """
    for part, names in said.items():
        name = names[0] if isinstance(names, list) and names else None
        known = name in ("diffusers", "transformers") or hasattr(diffusers.pipelines, str(name))
        if name is not None and not known:
            raise ConversionError(
                f"{index} asks for {name!r} as the library of {part}: loading it could run foreign "
                "code. Make the pipeline yourself and give it in place of its folder."
            )
