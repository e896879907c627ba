"""A residual network for vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from score_sde.checks import Depth, Few, Size, UserError, checked, memory_for
from score_sde.nets.layers import SinusoidalEmbedding, check_untold, linear
from score_sde.nets.text import TextInput


class MLP(nn.Module):
    """`net(x, noise_label)`: vectors x (B, dim), labels (B,) of DDPM's size (to 999) to (B, dim).

    width and depth are those of the hidden layers; each is modulated by the noise label (FiLM).
    text, text_table: width of a text encoder's states, and rows of a learned table of words, of a
    network that is told captions by one vector each; see `TextInput`. second_time: whether it is
    told of a second time, see `models.FlowMap`.
    """

    knows_nothing = True  # rows of `scores.nothing_like` are no condition

    @checked("net")
    @memory_for("net")
    def __init__(
        self,
        dim: Size,
        width: Size = 128,
        depth: Depth = 3,
        text: Few = 0,
        text_table: Few = 0,
        second_time: bool = False,
    ):
        super().__init__()
        self.dim = dim
        self.embedding = nn.Sequential(
            SinusoidalEmbedding(width), nn.Linear(width, width), nn.SiLU()
        )
        self.words = TextInput(text, text_table, width, width) if text or text_table else None
        self.first = nn.Linear(dim, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.second = linear(width, width, scale=0.0) if second_time else None

    def features(
        self,
        x: Tensor,
        noise_label: Tensor,
        words: Tensor | None = None,
        second_label: Tensor | None = None,
    ) -> Tensor:
        """What the last layer sees, (B, width). words (B, width) are told beside the noise."""
        if x.ndim < 2 or x.shape[1:].numel() != self.dim:
            raise UserError(f"this MLP was built for states (B, {self.dim}); got {tuple(x.shape)}.")
        features = self.embedding[0](noise_label).to(self.last.weight.dtype)
        if self.second is not None and second_label is not None:
            features = features + self.second(self.embedding[0](second_label).to(features))
        embedding = self.embedding[1:](features)
        if words is not None:
            embedding = embedding + words
        h = self.first(x.flatten(1))
        for layer, modulation in zip(self.hidden, self.modulation, strict=True):
            scale, shift = modulation(embedding).chunk(2, dim=1)
            h = h + nn.functional.silu(torch.addcmul(shift, layer(h), 1 + scale))
        return h

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        text_ids: Tensor | None = None,
        second_label: Tensor | None = None,
    ) -> Tensor:
        """See the class; captions are those of `TextInput`."""
        words = None
        if self.words is not None:
            words = self.words(len(x), text, text_mask, pooled, text_ids).vector
        else:
            check_untold(self, text=text, text_ids=text_ids, pooled=pooled)
        return self.last(self.features(x, noise_label, words, second_label)).view_as(x)
