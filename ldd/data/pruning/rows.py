"""The rows of a score table: which columns there are, what they may hold, and the images' fingerprint."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ldd.errors import UserError

COLUMNS = {
    "path": pa.string(),
    "sha256": pa.string(),
    "label": pa.int64(),
    "wnid": pa.string(),
    "loss": pa.float64(),
    "margin": pa.float64(),
    "rank": pa.int64(),
    "kept": pa.bool_(),
}
"""Of every table; a criterion other than the loss adds a column of its name."""

_MAY_BE_NULL = ("sha256", "loss", "margin", "kept")  # no file was opened; no classifier; nothing selected yet
_ABSOLUTE = r"^(/|\\|[A-Za-z]:)|(^|/)\.\.(/|$)"


def check_rows(rows: pa.Table, criterion: str) -> None:
    """Refuse rows that are no score table's.

    Raises:
        UserError: a column is missing, has another type or holds what it must not; no image, or one twice.
    """
    if len(set(rows.column_names)) != rows.num_columns:
        raise UserError(f"the score table has two columns of one name: {', '.join(rows.column_names)}")
    for name, kind in {**COLUMNS, criterion: COLUMNS.get(criterion, pa.float64())}.items():
        if name not in rows.column_names:
            raise UserError(f"the score table has no column {name!r}; it has {', '.join(rows.column_names)}")
        if rows.schema.field(name).type != kind:
            raise UserError(
                f"column {name!r} of the score table is {rows.schema.field(name).type}, not {kind}"
            )
        if rows[name].null_count and (name not in _MAY_BE_NULL or name == criterion):
            raise UserError(f"column {name!r} of the score table has {rows[name].null_count} empty fields")
    if criterion not in rows.column_names or rows.schema.field(criterion).type != pa.float64():
        raise UserError(f"criterion {criterion!r} of the score table is no column of scores")
    if not rows.num_rows:
        raise UserError("the score table is empty; score at least one image")
    values = rows[criterion].to_numpy()
    if not np.isfinite(values).all():
        worst = rows["path"][int(np.flatnonzero(~np.isfinite(values))[0])].as_py()
        raise UserError(
            f"{criterion} of {int((~np.isfinite(values)).sum())} images is NaN or infinite, first {worst}; check the "
            "classifier's weights, mean and std"
        )
    for name, pattern, good in (("path", _ABSOLUTE, False), ("sha256", "^[0-9a-f]{64}$", True)):
        wrong = np.flatnonzero(_matches(rows[name], pattern, good) != good)
        if len(wrong):
            raise UserError(
                f"{name} {rows[name][int(wrong[0])].as_py()!r} of the score table is no {_NOUN[name]}"
            )
    if pc.min(rows["label"]).as_py() < 0 or pc.max(rows["label"]).as_py() >= rows.num_rows:
        raise UserError("the score table has labels that are no class numbers 0..K-1")
    paths = rows["path"].take(pc.sort_indices(rows["path"]))
    if pc.any(pc.equal(paths[1:], paths[:-1])).as_py():  # an eighth of the time of counting distinct ones
        raise UserError("the score table names some path twice")


_NOUN = {"path": "path relative to the data's root", "sha256": "hash (64 hexadecimal digits)"}


def _matches(column: pa.ChunkedArray, pattern: str, if_null: bool) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = pc.match_substring_regex(column, pattern).fill_null(if_null).to_numpy()
    return found


def ranks(rows: pa.Table, criterion: str) -> npt.NDArray[np.int64]:
    """(M,) place of each image within its class: 0 for the lowest value of `criterion`, ties by path."""
    order = ordered(rows, "label", criterion, descending=False)
    labels = rows["label"].to_numpy()[order]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.searchsorted(labels, labels)
    return places


def ordered(rows: pa.Table, group: str | None, criterion: str, *, descending: bool) -> npt.NDArray[np.int64]:
    """Row numbers (M,) sorted by `group` (if any), then by `criterion`, then by path (always ascending)."""
    keys = [(criterion, "descending" if descending else "ascending"), ("path", "ascending")]
    if group is not None:
        keys.insert(0, (group, "ascending"))
    order: npt.NDArray[np.int64] = pc.sort_indices(rows, sort_keys=keys).to_numpy().astype(np.int64)
    return order


def fingerprint_of(rows: pa.Table) -> str:
    """Hash over wnid, path and contents of all images; equal in any order and wherever the files lie."""
    rows = rows.select(["wnid", "path", "sha256"]).sort_by("path")
    digest = hashlib.sha256()
    for batch in rows.to_batches(max_chunksize=2**16):
        joined = pc.binary_join_element_wise(
            *batch.columns, "\t", null_handling="replace", null_replacement=""
        )
        digest.update("\n".join([*joined.to_pylist(), ""]).encode())
    return digest.hexdigest()[:32]
