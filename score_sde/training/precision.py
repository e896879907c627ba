"""Numbers of the network's arithmetic: what a precision asks of the machine."""

from __future__ import annotations

import torch

from score_sde.checks import UserError


def set_precision(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Set up the device for model.precision; returns the scaler of its gradients.

    fp32 is float32 throughout; tf32 lets CUDA round the factors of products to 10 bits; bf16 and
    fp16 are autocast around the network (`ScoreModel`), and fp16 scales the loss. The process's
    mathematics, losses, weights and averages are float32 in each. Raises UserError for fp16
    without CUDA.
    """
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"model.precision=fp16 needs CUDA (training on {device.type}); use bf16 or fp32."
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
