"""Tables in Parquet and Arrow files of which nobody knows who wrote them.

A file names the type of each column, and a library can bring types of its own, whose values its code makes. Ray Data
has one whose values are pickles: whoever looks at one runs what is in it. None of our tables has such a column.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray.errors import DAMAGE_ERRORS, DataError, describe_error
from eav_ray.storage import check_format

# What pyarrow raises on damaged files, and what a library's types raise on metadata that is not theirs.
ARROW_READ_ERRORS = (*DAMAGE_ERRORS, pa.ArrowException)


TABLE_FORMAT = 1  # of a table that is kept; raise when its columns change their meaning
FORMAT_KEY = b"eav_ray.format"  # in the metadata of a file: the number of its format


EXTENSION_KEY = b"ARROW:extension:name"  # in a field's metadata, where no library that is loaded knows the type


def read_parquet_table(source: Any, columns: list[str] | None = None) -> pa.Table:
    """
    Args:
        source: A path or a buffer.
    Raises:
        Any of `ERRORS`: No Parquet, or as `check_table`.
    """
    return check_table(pq.read_table(source, columns=columns))


def iterate_parquet_tables(source: Any, max_rows: int) -> Iterator[pa.Table]:
    """Read a file some rows at a time, each time as one chunk.

    Raises:
        Any of `ERRORS`: As `read_parquet_table`.
    """
    file = pq.ParquetFile(source)
    _check_fields(file.schema_arrow)
    for batch in file.iter_batches(max_rows):
        yield check_table(pa.Table.from_batches([batch]))


def read_memory_mapped(path: Path) -> pa.Table:
    """An uncompressed Arrow file, whose values stay on the disk until they are looked at.

    Raises:
        Any of `ERRORS`: No such file, or as `check_table`.
    """
    return check_table(pa.ipc.open_file(pa.memory_map(str(path))).read_all())


def check_table(table: pa.Table) -> pa.Table:
    """A table without metadata of its own, which pandas would follow, and in which to look runs no code.

    Raises:
        ValueError: It has a column of a type that a library brought.
    """
    _check_fields(table.schema)
    return table.replace_schema_metadata()


def _check_fields(schema: pa.Schema) -> None:
    for field in schema:
        if name := _find_extension_type(field):
            raise ValueError(f"its column {field.name} is of the type {name}, which can run code when it is read")


def decode_dataframe(data: bytes, name: str) -> pd.DataFrame:
    """A table of numbers and text that this program made, such as predictions, from the bytes of a Parquet file.

    Raises:
        DataError: It is not; the text begins with `name`.
    """
    try:
        table = read_parquet_table(pa.BufferReader(data))
        for field in table.schema:
            if not _is_plain(field.type):
                raise ValueError(f"its column {field.name} is of the type {field.type}, no numbers or text")
        number = (pq.read_schema(pa.BufferReader(data)).metadata or {}).get(FORMAT_KEY)
        frame = table.to_pandas()
    except ARROW_READ_ERRORS as error:
        raise DataError(
            f"{name} is no table of this program ({describe_error(error)}); delete it and give the command again"
        ) from None
    found = None if number is None else number.decode(errors="replace")
    check_format(found, str(TABLE_FORMAT), name, "delete it and give the command again")
    return frame


def encode_dataframe(table: pd.DataFrame) -> bytes:
    """The Parquet file of which `decode_dataframe` makes this table."""
    sink = pa.BufferOutputStream()
    encoded = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(encoded.replace_schema_metadata({FORMAT_KEY: str(TABLE_FORMAT)}), sink)
    return sink.getvalue().to_pybytes()


def _find_extension_type(field: pa.Field) -> str:
    """The name of a type that a library brought and that a field is of, or holds; empty where there is none."""
    if field.metadata and EXTENSION_KEY in field.metadata:
        return field.metadata[EXTENSION_KEY].decode(errors="replace")
    return _find_extension_in_type(field.type)


def _find_extension_in_type(kind: pa.DataType) -> str:
    if isinstance(kind, pa.ExtensionType):  # Arrow's own are BaseExtensionType only
        return kind.extension_name
    if isinstance(kind, pa.BaseExtensionType):
        return _find_extension_in_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _find_extension_in_type(kind.value_type)
    return next(filter(None, (_find_extension_type(kind.field(i)) for i in range(kind.num_fields))), "")


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    texts = (pa.types.is_string, pa.types.is_large_string)
    return any(test(kind) for test in (*tests, *texts))
