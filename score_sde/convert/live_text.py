"""Captions as the conditions of networks of the diffusers library, by its pipelines' encoders.

Each function takes the pipeline, a caption for each sample and the shape of a state.
"""

from __future__ import annotations

from typing import Any

from score_sde.convert.live_nets import Condition


def stable_diffusion(pipe: Any, prompts: list[str], shape: tuple[int, ...]) -> Condition:
    return {"text": pipe.encode_prompt(prompts, pipe.device, 1, False)[0]}


def stable_diffusion_xl(pipe: Any, prompts: list[str], shape: tuple[int, ...]) -> Condition:
    text, _, pooled, _ = pipe.encode_prompt(
        prompts, device=pipe.device, do_classifier_free_guidance=False
    )
    height, width = (side * pipe.vae_scale_factor for side in shape[1:])
    sizes = text.new_tensor([height, width, 0, 0, height, width]).repeat(len(prompts), 1)
    return {"text": text, "pooled": pooled, "sizes": sizes}


def stable_diffusion_3(pipe: Any, prompts: list[str], shape: tuple[int, ...]) -> Condition:
    text, _, pooled, _ = pipe.encode_prompt(
        prompts, prompts, prompts, device=pipe.device, do_classifier_free_guidance=False
    )
    return {"text": text, "pooled": pooled}


def pixart(pipe: Any, prompts: list[str], shape: tuple[int, ...]) -> Condition:
    text, mask, _, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, device=pipe.device
    )
    return {"text": text, "text_mask": mask}


def flux(pipe: Any, prompts: list[str], shape: tuple[int, ...]) -> Condition:
    text, pooled, _ = pipe.encode_prompt(prompts, prompts, device=pipe.device)
    return {"text": text, "pooled": pooled}


PROMPTS = {  # by a part of the pipeline's name, the longer ones first
    "StableDiffusionXL": stable_diffusion_xl,
    "StableDiffusion3": stable_diffusion_3,
    "StableDiffusion": stable_diffusion,
    "PixArt": pixart,
    "Flux": flux,
}
