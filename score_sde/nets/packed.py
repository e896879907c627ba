"""A network prepared for many evaluations on a CPU, as sampling makes them.

oneDNN convolves with weights in a layout, and under bfloat16 autocast in a precision, of its own.
PyTorch rearranges them at every call, which for few images takes as long as the arithmetic.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def packed(net: Net) -> Net:
    """The network with its convolutions' weights as they are now, rearranged at the first call.

    Everything else is shared with ``net``, so this takes a second copy of those weights, in the
    precision of that call. With gradients, on other devices and where PyTorch has no oneDNN the
    convolutions are the ordinary ones, as are those of a network divided over processes. Later
    changes of ``net``'s weights may or may not be seen.
    """
    shared = [*net.parameters(), *net.buffers()]
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in shared)
    if not plain or not torch.backends.mkldnn.is_available() or not _has_operators():
        return net
    twin = copy.deepcopy(net, {id(tensor): tensor for tensor in shared})
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and child.padding_mode == "zeros" and child.groups == 1:
                setattr(module, name, PackedConv(child))
    return twin


class PackedConv(nn.Module):
    """`conv`, without gradients on a CPU by oneDNN with a rearranged copy of its weights."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.copies: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        conv, device = self.conv, x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if device != "cpu" or torch.is_grad_enabled() or not _computes(dtype):
            return conv(x)
        geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        if dtype not in self.copies:
            # PyTorch's compiler does the same to networks that it freezes.
            rearrange = torch.ops.mkldnn._reorder_convolution_weight
            weight = rearrange(conv.weight.detach().to(dtype), *geometry, x.shape)
            self.copies[dtype] = weight, None if conv.bias is None else conv.bias.to(dtype)
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x.to(dtype), *self.copies[dtype], *geometry, "none", [], "")


def _has_operators() -> bool:
    """They are PyTorch's own, not public ones: another version may lack them."""
    names = ("_reorder_convolution_weight", "_convolution_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


def _computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in it on this processor."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
