"""Captions as numbers: a text encoder is a callable from captions to conditions of a network.

    encoder(["an orange heart", None]) -> {"text": (B, L, D), "text_mask": (B, L) bool,
                                           "pooled": (B, D), "text_ids": (B, L) int64}

`text` are states of the tokens, `pooled` one vector of the whole caption, `text_ids` the numbers of
the tokens in a vocabulary, -1 for padding. An encoder may leave out what it does not have. None is
no caption: a row of zeros without a token (`scores.nothing_like`), which is what training puts in
place of captions that it drops. How far rows are padded never matters: padding is masked.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from score_sde.checks import UserError, cache_dir, library, lookup, reading
from score_sde.conditioning.minilm import MINILM, fetch_minilm
from score_sde.scores import without
from score_sde.writing import whole_file

Caption = str | None
Condition = dict[str, Tensor]
TextEncoder = Callable[[Sequence[Caption]], Condition]
BATCH = 64


class TextError(UserError):
    """Captions or a text encoder that cannot be used; the message says what to do."""


class Encoded(NamedTuple):
    """Captions of a data set or of samples: their condition, and how many tokens were cut off."""

    condition: Condition
    cut: dict[str, int]


@dataclass
class WordTable:
    """Words as numbers, for networks with a learned table of them (net.text_table); no weights.

    length: the most words of a caption. Words are what lies between blanks and punctuation, in
    lower case; a word's number is its CRC-32.
    """

    length: int = 16
    width: int = 0

    @property
    def name(self) -> str:
        """What a cache knows it by."""
        return f"words_{self.length}"

    def count(self, captions: Sequence[str]) -> list[int]:
        """Words of each caption."""
        return [len(_words(caption)) for caption in captions]

    def __call__(self, captions: Sequence[Caption]) -> Condition:
        ids = torch.full((len(captions), self.length), -1, dtype=torch.int64)
        for row, caption in zip(ids, captions, strict=True):
            numbers = [zlib.crc32(word.encode()) for word in _words(caption or "")]
            numbers = numbers[: self.length]
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return {"text_ids": ids, "text_mask": ids >= 0}


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", caption.lower())


@dataclass
class TransformersText:
    """The states of an encoder of the `transformers` library (extra ``[text]``), as they are.

    model: a folder or hub id. The default, all-MiniLM-L6-v2 (22.7 M parameters, 384 numbers a
    token), comes from the hub or, where that cannot be reached, from PyPI (see `minilm`).
    length: the most tokens of a caption, its beginning and end counted in.
    `pooled` is the mean of the states, of length 1: the sentence vector of MiniLM.
    """

    model: str = MINILM
    length: int = 24
    _loaded: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What a cache knows it by."""
        return f"{Path(self.model).name}_{self.length}"

    @property
    def width(self) -> int:
        """Numbers of a token's state."""
        return int(self(["a"])["text"].shape[-1])

    def count(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, beginning and end counted in."""
        return [len(ids) for ids in self._parts()[0](list(captions))["input_ids"]]

    def _parts(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = _load(self.model)
        return self._loaded

    @torch.no_grad()
    def __call__(self, captions: Sequence[Caption]) -> Condition:
        tokenizer, model = self._parts()
        given = tokenizer(
            [caption or "" for caption in captions], padding="max_length", truncation=True,
            max_length=self.length, return_tensors="pt",
        )  # fmt: skip
        mask = given["attention_mask"].bool()
        states = model(given["input_ids"], attention_mask=given["attention_mask"])
        text = states.last_hidden_state.float() * mask[..., None]
        pooled = torch.nn.functional.normalize(text.sum(1) / mask.sum(1, keepdim=True), dim=1)
        ids = given["input_ids"].masked_fill(~mask, -1)
        found = {"text": text, "text_mask": mask, "pooled": pooled, "text_ids": ids}
        return without(found, torch.tensor([caption is None for caption in captions]))


TEXT_ENCODERS: dict[str, Callable[..., Any]] = {"minilm": TransformersText, "words": WordTable}


def make_text_encoder(name: str, length: int = 24) -> Any:
    """A text encoder by its short name, a folder or hub id of `transformers`, or a dotted path.

    length: the most tokens of a caption. Raises UserError for a name that is none of these.
    """
    if "/" in name or Path(name).is_dir():
        return TransformersText(name, length)
    return lookup(TEXT_ENCODERS, name, "conditioning.text")(length=length)


@functools.lru_cache(maxsize=2)
def _load(name: str) -> tuple[Any, Any]:
    """Tokenizer and model by folder or hub id; `TextError` if they cannot be had."""
    transformers = library("transformers", "text", "captions need the library", TextError)
    transformers.utils.logging.disable_progress_bar()

    def load(source: str, **options: Any) -> tuple[Any, Any]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model = transformers.AutoModel.from_pretrained(source, use_safetensors=True, **options)
        return tokenizer, model.eval().requires_grad_(False)

    if Path(name).is_dir():
        with reading(name, "a text encoder of transformers", TextError):
            return load(name, local_files_only=True)
    try:
        return load(name, local_files_only=True)  # the hub's own cache
    except OSError:
        if name != MINILM:
            return _from_hub(load, name)
    return load(str(fetch_minilm(lambda: load(name))), local_files_only=True)


def _from_hub(load: Callable[[str], tuple[Any, Any]], name: str) -> tuple[Any, Any]:
    try:
        return load(name)
    except OSError as error:
        raise TextError(
            f"the text encoder {name!r} is no folder, and the hub does not give it ({error}). Give "
            "a folder of transformers, or the default encoder."
        ) from error


def check_captions(captions: Sequence[Caption]) -> None:
    """`TextError` for captions that are empty or no text."""
    for i, caption in enumerate(captions):
        if caption is not None and (not isinstance(caption, str) or not caption.strip()):
            raise TextError(
                f"caption {i} is {caption!r}: give some text, or None for a sample without a "
                "caption."
            )


def encode(encoder: TextEncoder, captions: Sequence[Caption], cache: Path | None = None) -> Encoded:
    """The conditions of captions, each different one encoded once.

    cache: a folder where they are kept, by the encoder's ``name``; nothing is kept of an encoder
    without one. Raises TextError for an empty caption; what is cut off an over-long one is told in
    the result, in tokens.
    """
    check_captions(captions)
    different = list(dict.fromkeys(captions))
    known = [caption for caption in different if caption is not None]
    length = getattr(encoder, "length", None)
    counted = encoder.count(known) if length is not None and hasattr(encoder, "count") else []
    cut = {c: n - length for c, n in zip(known, counted, strict=False) if n > length}
    file = _cache_file(encoder, different, cache)
    found = _read(file)
    if found is None:
        parts = [encoder(different[i : i + BATCH]) for i in range(0, len(different), BATCH)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if file is not None:
            with whole_file(file) as partial:
                save_file(found, partial)
    place = {caption: i for i, caption in enumerate(different)}
    rows = torch.tensor([place[caption] for caption in captions])
    return Encoded({name: value[rows] for name, value in found.items()}, cut)


def _cache_file(
    encoder: TextEncoder, captions: Sequence[Caption], cache: Path | None
) -> Path | None:
    name = getattr(encoder, "name", None)
    if name is None or len(captions) <= BATCH:
        return None
    key = hashlib.sha256("\n".join(c or "\0" for c in captions).encode()).hexdigest()[:16]
    return (cache or cache_dir() / "captions") / f"{name}_{key}.safetensors"


def _read(file: Path | None) -> Condition | None:
    """What is in the cache; None if it is not there or damaged, and then made anew."""
    if file is None or not file.is_file():
        return None
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def said_of(cut: dict[str, int]) -> str:
    """A sentence about captions that are too long; "" without any."""
    if not cut:
        return ""
    caption, tokens = max(cut.items(), key=lambda item: item[1])
    return (
        f"{len(cut)} captions are too long for the text encoder; up to {tokens} tokens at their "
        f"ends are cut off, as of {caption[:60]!r}."
    )
