"""Tables: the rows of a .csv, .tsv or .parquet file as vectors, a column of them as labels.

A column is numbers throughout, or the classes of the rows; gaps and text are named.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_sde.checks import check_names, library, number, reading, require
from score_sde.checks.arrays import FREE_BYTES, LARGEST_RATIO
from score_sde.data.files import listed
from score_sde.data.spec import DataError

LABEL_COLUMNS = ("label", "labels", "class", "target", "species", "y")
GAPS = ("", "na", "n/a", "nan", "null", "none", "-", "?")
SUFFIXES = (".csv", ".tsv", ".parquet")


class Table(NamedTuple):
    """Numbers (N, D), their D columns, and labels (N,) with the column's name, or None and ""."""

    items: np.ndarray
    columns: tuple[str, ...]
    labels: np.ndarray | None
    label_column: str


def read_table(path: Path, options: Mapping[str, Any]) -> Table:
    """The table of a file. options: ``label``, a column's name or "" for none; ``drop``, columns.

    A column called label, class, target, species or y is the label if nothing is said. Raises
    DataError that names the columns with text and those with gaps.
    """
    check_names(options, ("label", "drop"), "data.options of a table:", DataError)
    label = options.get("label")
    columns = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path, label)
    names = list(columns)
    dropped = options.get("drop", ())
    dropped = [dropped] if isinstance(dropped, str) else list(dropped)
    check_names([*dropped, *([label] if label else [])], names, f"{path}: the column", DataError)
    if label is None:
        label = next((n for n in names if n.lower() in LABEL_COLUMNS and n not in dropped), "")
    kept = {name: c for name, c in columns.items() if name not in (*dropped, label)}
    _check_columns(path, kept)
    items = np.stack([np.asarray(c.numbers) for c in kept.values()], 1)
    labels = columns[label].as_labels(path, label) if label else None
    return Table(items, tuple(kept), labels, label or "")


class Column(NamedTuple):
    """A column as it is read: numbers while all cells are, and the rows of gaps.

    texts: the cells as they are, of a column that may be the label.
    first_text: the first cell that is no number, and its row; None if all are.
    """

    numbers: array | np.ndarray
    texts: list[str]
    gaps: list[int]
    first_text: str | None

    def as_labels(self, path: Path, name: str) -> np.ndarray:
        """The cells as labels, whole numbers if all are; DataError for gaps."""
        if self.gaps:
            raise DataError(f"{path}: the label column {name!r} has gaps, {_rows(self.gaps)}.")
        if self.first_text is not None:
            return np.array(self.texts)
        return np.asarray(self.numbers)


def _rows(gaps: list[int]) -> str:
    return f"{len(gaps)} of them, the first in row {gaps[0] + 1}"


def _check_columns(path: Path, columns: Mapping[str, Column]) -> None:
    texts = [f"{name!r} ({c.first_text})" for name, c in columns.items() if c.first_text]
    gaps = [f"{name!r} ({_rows(c.gaps)})" for name, c in columns.items() if c.gaps]
    faults = []
    if texts:
        faults.append(
            f"columns with text are no numbers: {listed(texts, 20)}. Make one of them the classes "
            "with data.options.label=NAME, leave others out with data.options.drop=NAME."
        )
    if gaps:
        faults.append(
            f"cells are empty or NaN in {listed(gaps, 20)}. Fill them, remove these rows, or leave "
            "the columns out with data.options.drop=NAME."
        )
    if faults:
        raise DataError(f"{path}: {' Also, '.join(faults)}")
    if not columns or not len(next(iter(columns.values())).numbers):
        raise DataError(f"{path} holds no rows of numbers.")


def _read_csv(path: Path, label: str | None) -> dict[str, Column]:
    what = "a readable table"
    with (
        reading(path, what, DataError),
        path.open(newline="", encoding="utf-8-sig") as handle,
    ):
        dialect = _dialect(handle.read(1 << 14), path.suffix)
        handle.seek(0)
        return _columns(path, (row for row in csv.reader(handle, dialect) if row), label)


def _dialect(sample: str, suffix: str) -> type[csv.Dialect]:
    """The sign between cells that divides the first lines alike; Python's sniffer may hang."""
    lines = [line for line in sample.splitlines() if line.strip()][:20]
    counts = {sign: {line.count(sign) for line in lines[:-1] or lines} for sign in ",;\t|"}
    alike = [sign for sign, found in counts.items() if len(found) == 1 and max(found)]
    usual = "\t" if suffix == ".tsv" else ","
    some = max(counts, key=lambda sign: sum(counts[sign]), default=usual)
    sign = alike[0] if alike else some if any(counts[some]) else usual

    class Found(csv.excel):
        delimiter = sign
        skipinitialspace = True

    return Found


def _columns(path: Path, rows: Iterable[list[str]], label: str | None) -> dict[str, Column]:
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} is empty.")
    headed = not any(_number(cell) is not None for cell in first)
    names = [c.strip() for c in first] if headed else [str(i + 1) for i in range(len(first))]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: columns share a name: {listed(names, 20)}.")
    numbers = [array("d") for _ in names]
    texts: list[list[str]] = [[] for _ in names]
    kept = [name == label if label else name.lower() in LABEL_COLUMNS for name in names]
    gaps: list[list[int]] = [[] for _ in names]
    first_texts: list[str | None] = [None for _ in names]
    for i, row in enumerate(rows if headed else chain([first], rows)):
        if len(row) != len(names):
            raise DataError(f"{path}: row {i + 1} has {len(row)} cells, not {len(names)}.")
        for k, cell in enumerate(row):
            value = _number(cell)
            if cell.strip().lower() in GAPS or value != value:
                gaps[k].append(i)
            elif value is None and first_texts[k] is None:
                first_texts[k] = f"{cell.strip()[:40]!r} in row {i + 1}"
            numbers[k].append(0.0 if value is None else value)
            if kept[k]:
                texts[k].append(cell.strip())
    return {
        name: Column(numbers[k], texts[k], gaps[k], first_texts[k]) for k, name in enumerate(names)
    }


def _number(cell: str) -> float | None:
    try:
        return number(cell, float)
    except ValueError:
        return None


def _read_parquet(path: Path) -> dict[str, Column]:
    parquet: Any = library("pyarrow.parquet", "tables", f"{path} is no .csv and needs", DataError)
    with reading(path, "a readable table", DataError):
        facts = parquet.read_metadata(path)
        size, most = 8 * facts.num_rows * facts.num_columns, LARGEST_RATIO * path.stat().st_size
        require(
            size <= max(FREE_BYTES, most),
            f"it claims {facts.num_rows} rows of {facts.num_columns} columns, far more than it is",
        )
        table = parquet.read_table(path)
    return {name: _arrow_column(table.column(name)) for name in table.column_names}


def _arrow_column(column: Any) -> Column:
    from pyarrow import types

    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        values = column.cast("float64", safe=False).to_numpy()
        return Column(values, [], np.flatnonzero(np.isnan(values)).tolist(), None)
    cells = [None if cell is None else str(cell) for cell in column.to_pylist()]
    gaps = [i for i, cell in enumerate(cells) if cell is None]
    first = next((i for i, cell in enumerate(cells) if cell is not None), None)
    said = None if first is None else f"{str(cells[first])[:40]!r} in row {first + 1}"
    return Column(np.zeros(len(cells)), ["" if c is None else c for c in cells], gaps, said)
