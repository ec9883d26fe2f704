"""The table of tiles as Parquet: the one owner of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.findings.columns import COLUMNS, Column, Values

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:  # it is optional
    pa = None


def check_parquet() -> None:
    """Refuse to go on without pyarrow.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    if pa is None:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed; install it with `pip install 'kesm-pipeline[tables]'`, or "
            "name a file that ends in .csv"
        )


def write_parquet(path: Path, parts: Iterator[list[Values]], about: Mapping[str, str]) -> int:
    """Write rows as Parquet, a row group for each part, and return how many.

    Parameters
    ----------
    path : Path
    parts : iterator of list of Values
    about : mapping of str to str
        Metadata of the file.
    """
    schema = pa.schema([(column.name, _type(column)) for column in COLUMNS], metadata=dict(about))
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            batch = pa.record_batch([_array(values) for values in part], schema=schema)
            writer.write_batch(batch)
            written += batch.num_rows
    return written


def _type(column: Column) -> pa.DataType:
    return pa.dictionary(pa.uint8(), pa.string()) if column.kind == "text" else pa.type_for_alias(column.kind)


def _array(values: Values) -> pa.Array:
    if values.column.kind == "text":
        positions = pa.array(values.values, mask=values.empty)
        return pa.DictionaryArray.from_arrays(positions, pa.array(values.column.words))
    return pa.array(values.values, mask=values.empty)
