"""Transformers over patches: DiT, PixArt, U-ViT and JiT as settings of one network.

    tokens = patches of x + their places
    each block:  tokens += gate * attention(scale * norm(tokens) + shift)
                 tokens += cross-attention(tokens, text)            where there is a text
                 tokens += gate * MLP(scale * norm(tokens) + shift)
    x_out  = patches of (scale * norm(tokens) + shift)

The noise label (and the class, and a pooled text) make scale, shift and gate ("adaLN-zero",
2212.09748), which start at zero, so that a new block changes nothing; by a layer in each block, by
one for all blocks and a table in each (2310.00426), or not at all: they are tokens among the
others then (2209.12152).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_sde.checks import (
    Depth,
    Few,
    Fraction,
    Positive,
    Size,
    UserError,
    check_size,
    checked,
    memory_for,
    named,
)
from score_sde.nets.attention import (
    axial_angles,
    patches_per_side,
    sincos_positions,
    small_normal,
    zero,
)
from score_sde.nets.layers import check_untold
from score_sde.nets.presets import TRANSFORMERS
from score_sde.nets.transformer_blocks import Block, BlockOptions, Embedding, make_norm, small


class Transformer(nn.Module):
    """`net(x, noise_label)`: images x (B, channels, H, W) to (B, out_channels, H, W).

    channels, size: what the images are; size is (H, W). out_channels: as many as go in if None.
    width, depth, heads: of the tokens, the blocks, and their attention. patch: pixels a side.
    mlp_ratio, mlp: hidden width over width, and the kind, see `attention.MLP`.
    modulation: "each", "shared" or "tokens", see the module. positions: "sincos" (fixed, added),
        "rotary" (axial) or "learned". position_spacing: of "sincos".
    norm, norm_eps, mlp_norm_eps: "layer" or "rms", and their constants. qk_norm: see `Attention`.
    classes: number of classes, whose null is a row of its own. class_dropout: share of classes
        that training has replaced by it (2207.12598); a fact, nothing is dropped here.
    class_tokens, class_tokens_from: tokens of the class that join from this block on (2511.13720).
    text_dim, text: width of a text's tokens, taken by "cross"-attention in every block, or as
        "tokens" among the others. pooled_dim: width of a pooled text.
    bottleneck: width of a linear layer between patches and tokens, None for none.
    skips: the second half of the blocks joins the results of the first (2209.12152).
    last_conv: a 3 x 3 convolution at the end. features: of the noise label; time_endpoint: see
        `SinusoidalEmbedding`. embedding_per_block: each block has an embedding of its own, as
        checkpoints of diffusers store them.

    Raises UserError for sizes that patches do not divide and widths that heads do not.
    """

    knows_nothing = True  # rows of `nothing_like` are no condition
    place: Tensor | None
    angles: Tensor | None
    embeddings: Any  # ModuleLists of Embedding and Block
    blocks: Any

    @checked("net")
    @memory_for("net")
    def __init__(
        self,
        channels: Size,
        size: tuple[Size, Size],
        out_channels: Size | None = None,
        width: Size = 384,
        depth: Depth = 12,
        heads: Size = 6,
        patch: Size = 2,
        mlp_ratio: Positive = 4.0,
        mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh",
        modulation: Literal["each", "shared", "tokens"] = "each",
        positions: Literal["sincos", "rotary", "learned"] = "sincos",
        position_spacing: float = 1.0,
        norm: Literal["layer", "rms"] = "layer",
        norm_eps: Positive = 1e-6,
        mlp_norm_eps: Positive | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = True,
        classes: Few = 0,
        class_dropout: Fraction = 0.0,
        class_tokens: Few = 0,
        class_tokens_from: Few = 0,
        text_dim: Few = 0,
        text: Literal["cross", "tokens"] = "cross",
        pooled_dim: Few = 0,
        bottleneck: Size | None = None,
        skips: bool = False,
        last_conv: bool = False,
        dropout: Fraction = 0.0,
        features: Size = 256,
        time_endpoint: bool = False,
        embedding_per_block: bool = False,
    ):
        super().__init__()
        if width % 4 or (positions == "rotary" and (width // heads) % 4):
            raise UserError(f"positions need a width of 4 a head (got {width} over {heads}).")
        if class_tokens and not classes:
            raise UserError(f"class_tokens={class_tokens} needs a number of classes.")
        self.size, self.patch, self.classes = tuple(size), patch, classes
        self.class_dropout, self.modulation, self.text = class_dropout, modulation, text
        self.class_tokens_from = class_tokens_from
        self.out_channels = channels if out_channels is None else out_channels
        self.grid = patches_per_side(size, patch)
        inner = bottleneck or width
        self.patches = nn.Conv2d(channels, inner, patch, stride=patch, bias=bottleneck is None)
        self.widen = nn.Linear(inner, width) if bottleneck else None
        self._make_places(width, heads, positions, position_spacing)
        each = depth if embedding_per_block else 1
        self.embeddings = nn.ModuleList(
            Embedding(width, features, classes, pooled_dim, time_endpoint) for _ in range(each)
        )
        self.shared = nn.Linear(width, 6 * width) if modulation == "shared" else None
        self.token_places = small(class_tokens, width) if class_tokens else None
        self.text_first = nn.Linear(text_dim, width) if text_dim else None
        self.text_second = nn.Linear(width, width) if text_dim else None
        self.null_text = nn.Parameter(torch.zeros(1, text_dim)) if text_dim else None

        options = BlockOptions(
            width=width, heads=heads, hidden=round(mlp_ratio * width), mlp=mlp, norm=norm,
            modulation=modulation, norm_eps=norm_eps, affine=modulation == "tokens",
            mlp_norm_eps=norm_eps if mlp_norm_eps is None else mlp_norm_eps, qk_norm=qk_norm,
            qkv_bias=qkv_bias, dropout=dropout, crossed=bool(text_dim) and text == "cross",
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            Block(options, skip=skips and i >= (depth + 1) // 2) for i in range(depth)
        )
        self._make_end(width, norm, last_conv)
        self._initialize()

    @classmethod
    def preset(cls, name: str, **options: Any) -> Transformer:
        """A published transformer by its name in `presets.TRANSFORMERS`, with changes."""
        return cls(**{**named(TRANSFORMERS, name, "the preset"), **options})

    def _make_places(self, width: int, heads: int, positions: str, spacing: float) -> None:
        """How tokens are told their places: added, fixed or learned, or as angles."""
        count = self.grid[0] * self.grid[1]
        check_size(32 * count * width, "the places of so many patches")
        fixed = sincos_positions(*self.grid, width, spacing) if positions == "sincos" else None
        self.register_buffer("place", fixed, persistent=False)
        turns = axial_angles(*self.grid, width // heads) if positions == "rotary" else None
        self.register_buffer("angles", turns, persistent=False)
        self.learned = small(count, width) if positions == "learned" else None

    def _make_end(self, width: int, norm: str, convolved: bool) -> None:
        """From tokens to the patches of the result."""
        self.last_norm = make_norm(norm, width, 1e-6, self.modulation == "tokens")
        self.last_modulation = nn.Linear(width, 2 * width) if self.modulation == "each" else None
        table = torch.randn(2, width) / width**0.5
        self.last_table = nn.Parameter(table) if self.modulation == "shared" else None
        image = self.out_channels
        self.last = nn.Linear(width, self.patch**2 * image)
        self.last_conv = nn.Conv2d(image, image, 3, padding=1) if convolved else None

    def _initialize(self) -> None:
        small_normal(self)
        for embedding in self.embeddings:
            for layer in (embedding.first, embedding.second):
                nn.init.normal_(layer.weight, std=0.02)
            if embedding.classes is not None:
                nn.init.normal_(embedding.classes.weight, std=0.02)
        for block in self.blocks:
            if block.modulation is not None:
                zero(block.modulation)
            if block.cross is not None:
                zero(block.cross.out)
        zero(self.last)
        if self.last_modulation is not None:
            zero(self.last_modulation)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_labels: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """class_labels: integers (B,); -1 or None is any class. text: tokens (B, L, text_dim), with
        text_mask (B, L) false for padding; none, or no token left, is the null token.
        pooled: (B, pooled_dim)."""
        if tuple(x.shape[2:]) != self.size:
            raise UserError(
                f"this transformer is for images of {self.size}, not {tuple(x.shape[2:])}."
            )
        if not self.classes:
            check_untold(self, class_labels=class_labels)
        row = self._class_rows(noise_label, class_labels)
        words, words_mask = self._words(x, text, text_mask)
        tokens = self._tokens(x)
        before, mask = 0, None  # tokens in front of the patches
        if self.modulation == "tokens":
            tokens = torch.cat([self._time_tokens(noise_label, row), tokens], 1)
        if self.text == "tokens" and words is not None:
            tokens = torch.cat([words, tokens], 1)
        before = tokens.shape[1] - self.grid[0] * self.grid[1]
        if self.text == "tokens" and words_mask is not None:
            mask = F.pad(words_mask, (0, tokens.shape[1] - words_mask.shape[1]), value=True)

        kept: list[Tensor] = []
        crossed, crossed_mask = (words, words_mask) if self.text == "cross" else (None, None)
        for i, block in enumerate(self.blocks):
            if self.token_places is not None and i == self.class_tokens_from and row is not None:
                extra = self.embeddings[0].classes(row)[:, None] + self.token_places
                tokens, before = torch.cat([extra, tokens], 1), before + len(self.token_places)
                mask = (
                    None if mask is None else F.pad(mask, (len(self.token_places), 0), value=True)
                )
            if block.skip is not None:
                tokens = block.skip(torch.cat([tokens, kept.pop()], -1))
            c = self._modulation(i, noise_label, row, pooled)
            tokens = block(tokens, c, crossed, crossed_mask, mask, self._turns(before))
            if self.blocks[-1].skip is not None and i < len(self.blocks) // 2:
                kept.append(tokens)
        return self._image(tokens[:, before:], noise_label, row, pooled)

    def _class_rows(self, noise_label: Tensor, class_labels: Tensor | None) -> Tensor | None:
        """Rows of the class table, the last of which is any class."""
        if not self.classes:
            return None
        if class_labels is None:
            return torch.full_like(noise_label, self.classes, dtype=torch.int64)
        return torch.where(class_labels < 0, self.classes, class_labels.long())  # -1: no class

    def _tokens(self, x: Tensor) -> Tensor:
        """Patches (B, rows * columns, width), told their places."""
        tokens = self.patches(x.to(self.last.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = tokens if self.widen is None else self.widen(tokens)
        place = self.learned if self.place is None else self.place
        return tokens if place is None else tokens + place

    def _words(
        self, x: Tensor, text: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The text's tokens (B, L, width) and their mask; the null token without a text."""
        if self.text_first is None or self.text_second is None or self.null_text is None:
            check_untold(self, text=text)
            return None, None
        if text is None:
            text, text_mask = self.null_text.expand(len(x), 1, -1), None
        elif text_mask is not None:  # a text without a token is the null token
            missing, text_mask = ~text_mask.any(1), text_mask.clone()
            first = torch.where(missing[:, None], self.null_text.to(text.dtype), text[:, 0])
            text = torch.cat([first[:, None], text[:, 1:]], 1)
            text_mask[:, 0] |= missing
        h = self.text_first(text.to(self.last.weight.dtype))
        return self.text_second(F.gelu(h, approximate="tanh")), text_mask

    def _time_tokens(self, noise_label: Tensor, row: Tensor | None) -> Tensor:
        """The noise label, and the class, as tokens (B, 1 or 2, width)."""
        tokens = [self.embeddings[0].time(noise_label)]
        if row is not None:
            tokens.append(self.embeddings[0].classes(row))
        return torch.stack(tokens, 1)

    def _modulation(
        self, i: int, noise_label: Tensor, row: Tensor | None, pooled: Tensor | None
    ) -> Tensor | None:
        """What modulates block i; computed once where all blocks share it."""
        if self.modulation == "tokens":
            return None
        c = self.embeddings[i % len(self.embeddings)](noise_label, row, pooled)
        return c if self.shared is None else self.shared(F.silu(c)).unflatten(-1, (6, -1))

    def _turns(self, before: int) -> Tensor | None:
        """Rotary angles of all tokens: those in front of the patches are not turned."""
        return None if self.angles is None else F.pad(self.angles, (0, 0, before, 0))

    def _image(
        self, tokens: Tensor, noise_label: Tensor, row: Tensor | None, pooled: Tensor | None
    ) -> Tensor:
        """(B, out_channels, H, W) from the patches' tokens."""
        h = self.last_norm(tokens)
        c = None
        if self.last_modulation is not None:
            c = self.last_modulation(F.silu(self.embeddings[0](noise_label, row, pooled)))
            c = c.unflatten(-1, (2, -1))
        elif self.last_table is not None:
            c = self.last_table + self.embeddings[0](noise_label, row, pooled)[:, None]
        if c is not None:
            shift, scale = c[:, :, None].unbind(1)
            h = h * (1 + scale) + shift
        patches = self.last(h).unflatten(-1, (self.patch, self.patch, self.out_channels))
        patches = patches.unflatten(1, self.grid)  # (B, rows, columns, p, q, C)
        image = patches.permute(0, 5, 1, 3, 2, 4).reshape(len(h), self.out_channels, *self.size)
        return image if self.last_conv is None else self.last_conv(image)
