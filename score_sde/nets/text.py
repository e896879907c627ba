"""What a network is told in words: token states by cross-attention, their sum in the embedding.

A caption comes as the token states of a text encoder, `text` (B, L, D) with `text_mask` (B, L),
and one vector for the whole, `pooled` (B, D); or, and also, as the numbers of its words or word
pieces, `text_ids` (B, L), of which the network learns a table of its own. A caption without a
token is no caption: one learned token then stands for it, and one learned vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import UserError
from score_sde.nets.blocks import BlockOptions
from score_sde.nets.layers import check_divides, conv, linear

LOW = -1e4  # of the logits of padding: its weight is exactly 0, in bfloat16 too


class Words(NamedTuple):
    """Tokens (B, C, L + 1), the bias of their logits (B, 1, 1, L + 1), the vector (B, E)."""

    tokens: Tensor
    bias: Tensor
    vector: Tensor


class TextInput(nn.Module):
    """Captions as the blocks of a network take them.

    width: D of the encoder's states and vector, 0 for none. table: rows of the learned table of
    words, 0 for none; a word of number i has row i modulo it. channels: C of the tokens.
    embedding: E of the vector.
    """

    def __init__(self, width: int, table: int, channels: int, embedding: int):
        super().__init__()
        if not width and not table:
            raise UserError("a network of captions needs net.text, net.text_table, or both.")
        self.width, self.channels = width, channels
        self.norm = nn.LayerNorm(width) if width else None
        self.project = linear(width, channels) if width else None
        self.table = nn.Embedding(table, channels) if table else None
        inputs = width or channels
        self.pool0, self.pool1 = linear(inputs, embedding), linear(embedding, embedding)
        self.no_token = nn.Parameter(torch.randn(channels))
        self.no_vector = nn.Parameter(torch.zeros(embedding))
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.5 if width else 1.0)

    def forward(
        self, n: int, text: Tensor | None, mask: Tensor | None, pooled: Tensor | None,
        ids: Tensor | None,
    ) -> Words:  # fmt: skip
        """Of n samples; None is no caption for any of them, and no mask that all tokens count.

        A vector may also come alone, as the embedding of a picture does; zeros are none then.
        """
        like = self.no_token
        known = mask if mask is not None else None if ids is None else ids >= 0
        if known is None:
            known = torch.ones(n, 0 if text is None else text.shape[1], device=like.device)
        known = known.bool()
        states = like.new_zeros(n, known.shape[1], self.channels)
        vector = like.new_zeros(n, self.width or self.channels)
        if self.norm is not None and self.project is not None and text is not None:
            normed = self.norm(text.to(like.dtype))
            states = states + self.project(normed)
            vector = _mean(normed, known) if pooled is None else self.norm(pooled.to(like.dtype))
        if self.table is not None and ids is not None:
            rows = self.table(ids.clamp(min=0) % self.table.num_embeddings)
            states = states + rows
            vector = vector if self.width else _mean(rows, known)
        nothing = ~known.any(1, keepdim=True)
        states = torch.cat([self.no_token.expand(n, 1, -1), states], 1)
        known = torch.cat([nothing, known], 1)
        untold = nothing
        if self.norm is not None and pooled is not None and text is None:  # a vector alone
            vector = self.norm(pooled.to(like.dtype))
            untold = nothing & ~pooled.bool().any(1, keepdim=True)
        vector = self.pool1(F.silu(self.pool0(vector)))
        vector = torch.where(untold, self.no_vector.to(vector.dtype), vector)
        bias = torch.zeros_like(known, dtype=like.dtype).masked_fill(~known, LOW)
        return Words(states.mT, bias[:, None, None, :], vector)


def _mean(states: Tensor, known: Tensor) -> Tensor:
    """The mean (B, C) of states (B, L, C) where known (B, L); 0 without any."""
    weights = known.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class CrossAttention(nn.Module):
    """Attention of pixels (B, C, H, W) to tokens (B, T, L), with a residual connection.

    Starts as the identity. heads: of ``head_channels`` each.
    """

    def __init__(self, channels: int, tokens: int, heads: int, options: BlockOptions):
        super().__init__()
        check_divides(channels, heads, "text heads")
        self.heads, self.options = heads, options
        self.norm = options.norm(channels)
        self.query = options.conv(channels, channels, kernel=1)
        self.keys_values = conv(tokens, 2 * channels, kernel=1)
        self.proj = options.conv(channels, channels, kernel=1, scale=0.0)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        batch, channels = x.shape[:2]
        size = channels // self.heads
        query = self.query(self.norm(x)).reshape(batch, self.heads, size, -1).mT
        both = self.keys_values(words.tokens[..., None]).reshape(batch, 2, self.heads, size, -1)
        key, value = both.mT.unbind(1)  # each (B, heads, L, C / heads)
        logits = (query * size**-0.5) @ key.mT + words.bias
        h = logits.softmax(-1).to(value.dtype) @ value
        return self.options.scaled(x + self.proj(h.mT.reshape(x.shape)))
