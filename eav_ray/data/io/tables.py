"""Read tables as spreadsheets, pandas and R write them: text with any usual separator and encoding, and Parquet.

What a table means by its form is found by its header and its first bytes, never guessed by what its rows hold. What
cannot be meant in one way alone is refused in a line that says how to save it.
"""

import codecs
import csv
import datetime
import io
import re
import stat
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eav_ray.data.io import parquet
from eav_ray.errors import DataError, describe_error

if TYPE_CHECKING:
    import _csv

SEPARATORS = (",", ";", "\t", "|")
# How pandas, R and spreadsheets write that a cell holds nothing, and spreadsheets that a formula failed.
EMPTY_CELLS = frozenset(
    ["", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "null", "NULL", "None", "<NA>", "NaT"]
    + ["#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NUM!", "#NULL!"]
)
MAX_TEXT_BYTES = (
    2**29
)  # a table of 10,000 recordings with 4,096 features each; their cells take six times as much memory
MAX_TITLE_LINES = 30  # the header is looked for so far, to say where it is
INVISIBLE = "\ufeff\u200b\u2060"  # marks without width, which tables carry along when they are copied
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # the first line by which Excel is told of a separator
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
INDEX_NAME = re.compile(
    r"(?:Unnamed: [\d.]+|__index_level_\d+__)?"
)  # of the column that pandas writes beside the others
WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
WHOLE_NUMBER_COMMA = re.compile(r"(-?(?:0|[1-9]\d*))[.,]0+")
# What saves other formats than these begins with, and what it is.
OTHER_FORMATS = (
    (b"PK\x03\x04", "an Excel or OpenDocument workbook, or another archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"ARROW1", "an Arrow or Feather file"),
    (b"\x1f\x8b", "a compressed file"),
    (b"BZh", "a compressed file"),
    (b"\xfd7zXZ", "a compressed file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF"),
)


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        columns: Name -> cells: text without spaces around it, or what a Parquet file holds. A column of row numbers is
            left out.
        numbers: Of the rows, as users count them: 1 is the first below the header.
        problems: Rows that were left out, by number, and why.
        remarks: What was understood otherwise than it stands, a line each.
        decimal_comma: Whether numbers may have a comma, as they do where columns are not separated by it.
    """

    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    problems: tuple[tuple[int, str], ...] = ()
    remarks: tuple[str, ...] = ()
    decimal_comma: bool = False

    def read_text(self, name: str) -> list[str]:
        """Read the cells of a column as text.

        Raises:
            ValueError: A cell is a list or the like, or bytes that are no text.
        """
        return [format_cell(cell) for cell in self.columns[name]]

    def read_names(self, name: str) -> list[str]:
        """Read the cells of a column as names: text that is written in one way, and whole numbers without a `.0`.

        Raises:
            ValueError: As `read_text`.
        """
        return [normalise_name(text, self.decimal_comma) for text in self.read_text(name)]


def read_tabular_file(path: Path, known_columns: Collection[str]) -> Table:
    """Read a file that is text with `,`, `;`, tab or `|` between columns, or Parquet, by its content.

    Text is UTF-8, UTF-16 with a mark at its beginning, or Windows-1252, which is remarked on. Rows that are empty or
    begin with `#` and hold nothing else are passed over.

    Args:
        known_columns: Names that the header may have, by which it and the separator are found.
    Raises:
        DataError: It is none of these, larger than `MAX_TEXT_BYTES`, names a column twice, or has no header in its
            first line.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head[:4] == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
            return _read_parquet(path)
        for signature, what in OTHER_FORMATS:
            if head.startswith(signature):
                raise DataError(f"{path} is {what}; save it as CSV (UTF-8) or Parquet")
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{path} has more than {MAX_TEXT_BYTES >> 20} MiB; save it as Parquet")
        text, remark = _decode_text(path, path.read_bytes())
        return _parse_text(path, text, known_columns, (remark,) if remark else ())
    except DataError:
        raise
    except parquet.ARROW_READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as a CSV or Parquet table ({describe_error(error)})") from None


def format_cell(cell: Any) -> str:
    """Make text of a cell; empty where there is nothing in it. Whole numbers have no `.0`, days no time.

    Raises:
        ValueError: It is a list or the like, or bytes that are no text.
    """
    if cell is None or cell != cell:  # NaN, which is not itself
        return ""
    if isinstance(cell, list | dict | tuple):
        raise ValueError("a cell holds a list, where text or a number should be")
    if isinstance(cell, bytes):
        return _strip(cell.decode())
    if isinstance(cell, float | Decimal) and float(cell).is_integer():
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time.min:
        return cell.date().isoformat()
    return _strip(str(cell))


def normalise_name(text: str, decimal_comma: bool = False) -> str:
    """Write a name in one way: letters composed, and a whole number without the `.0` that empty cells below it cost.

    `01` stays: it is a name.
    """
    text = unicodedata.normalize("NFC", text)
    whole = (WHOLE_NUMBER_COMMA if decimal_comma else WHOLE_NUMBER).fullmatch(text)
    return whole[1] if whole else text


def find_named_file(folder: Path, cell: str, what: str) -> tuple[str, str]:
    """Find the file that a cell names: its path, and what is wrong with it.

    Where nothing has that very name, it is looked for as Windows, spreadsheets and macOS write it.

    Args:
        folder: Of the table.
        what: How the file is called.
    """
    unquoted = cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "\"'" else cell
    spellings = [cell, *(unicodedata.normalize(f, unquoted.replace("\\", "/")) for f in ("NFC", "NFD"))]
    for spelling in spellings:
        path = folder / spelling
        try:
            if stat.S_ISREG(path.stat().st_mode):
                return str(path), ""
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = f"{what} cannot be looked at ({describe_error(error)}); correct the path or its rights"
            return str(path), reason
        reason = f"{what} is a folder, or no file; correct the path or empty the cell"
        return str(path), reason
    reason = f"{what} does not exist; correct the path or empty the cell"
    if WINDOWS_PATH.match(unquoted):
        reason = f"{what} is on a drive of Windows; write its path relative to the table's folder, or as it is here"
    elif ADDRESS.match(unquoted):
        reason = f"{what} is an address; write the path of a file that is here"
    elif "\\" in unquoted:
        reason = f"{what} does not exist, nor with / for each \\; correct the path or empty the cell"
    elif other := _find_other_case(folder / spellings[1]):
        reason = f"{what} does not exist, but {other} does; small and capital letters must agree"
    return str(folder / cell), reason


def _find_other_case(path: Path) -> str:
    """The name of a file that differs from a path in small and capital letters alone; empty where there is none."""
    try:
        return next((p.name for p in sorted(path.parent.iterdir()) if p.name.lower() == path.name.lower()), "")
    except OSError:
        return ""


def _strip(text: str) -> str:
    return text.strip().strip(INVISIBLE).strip()


def _read_parquet(path: Path) -> Table:
    table = parquet.read_parquet_table(path)
    table.validate(full=True)  # text that is no UTF-8, offsets beyond the end: what a reader would trust
    names = [_strip(name) for name in table.column_names]
    kept = _find_data_columns(path, names)
    columns = {names[i]: table.column(i).to_pylist() for i in kept}
    return Table(columns, range(1, table.num_rows + 1))


def _decode_text(path: Path, data: bytes) -> tuple[str, str]:
    """The text of a file, and a remark where its encoding is a guess."""
    remark = ""
    try:
        if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            text = data.decode("utf-32")
        elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = data[: error.start].count(b"\n") + 1
        # In text of Windows-1252 such pairs of bytes stand for letters that do not follow each other.
        if error.encoding != "utf-8" or re.search(rb"[\xc3-\xf4][\x80-\xbf]", data):
            raise DataError(
                f"{path} is damaged {error.encoding.upper()} (line {at}); save it as CSV (UTF-8) again"
            ) from None
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(
                f"{path} is neither UTF-8 nor Windows-1252 (line {at}); save it as CSV (UTF-8) or Parquet"
            ) from None
        word = next(w for w in re.findall(r"\w*[^\x00-\x7f]\w*", text))
        remark = f"{path} is not UTF-8; read as Windows-1252, as in {word!r}; save it as CSV (UTF-8) if that is wrong"
    if "\0" in text:
        raise DataError(
            f"{path} is no text, or UTF-16 without a mark at its beginning; save it as CSV (UTF-8) or Parquet"
        )
    return text, remark


def _parse_text(path: Path, text: str, known_columns: Collection[str], remarks: tuple[str, ...]) -> Table:
    lines = io.StringIO(text, newline="")
    separator = _find_header(path, lines, known_columns)
    # strict: an opened quote that nothing closes would swallow all rows below it.
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    records = _iterate_records(path, reader)
    _, header = next(records, (0, []))
    if isinstance(header, str):
        raise DataError(f"{path}: the names of columns cannot be read ({header})")
    kept = _find_data_columns(path, header)
    columns: dict[str, list[Any]] = {header[i]: [] for i in kept}
    numbers: list[int] = []
    problems: list[tuple[int, str]] = []
    n_longer = n_rows = 0
    for number, cells in records:
        if isinstance(cells, str):
            problems.append((number, cells))
            continue
        if not any(cells) or (cells[0].startswith("#") and not any(cells[1:])):
            continue
        n_rows += 1
        n_longer += len(cells) == len(header) + 1 and bool(cells[-1])
        if reason := _find_shape_problem(number, cells, len(header)):
            problems.append((number, reason))
            continue
        numbers.append(number)
        for i in kept:
            columns[header[i]].append(cells[i])
    if 1 < n_rows == n_longer:
        raise DataError(
            f"{path} has one cell more in each row than in its header; give the first column a name too, or write no "
            "names of rows (R)"
        )
    return Table(columns, numbers, tuple(problems), remarks, separator != ",")


def _iterate_records(path: Path, reader: "_csv.Reader") -> Iterator[tuple[int, list[str] | str]]:
    """Yields the number of each record, 0 for the header, and its cells, or why it cannot be read.

    Raises:
        DataError: A record that cannot be read goes over several lines, so that nobody knows what belongs to it.
    """
    number = -1
    while True:
        number, line = number + 1, reader.line_num
        try:
            yield number, [_strip(cell) for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            reason = (
                f"row {number} cannot be read ({error}); a quote must be closed, and one inside of quotes written twice"
            )
            if reader.line_num > line + 1:
                raise DataError(f"{path} cannot be read beyond this: {reason}") from None
            yield number, reason


def _find_shape_problem(number: int, cells: Sequence[str], n_columns: int) -> str:
    """Say why a row has not the cells of the header; empty where it has, or more that are empty."""
    reason = ""
    if len(cells) < n_columns or any(cells[n_columns:]):
        reason = (
            f"row {number} has {len(cells)} cells, the header {n_columns}; correct it (a cell that holds the separator "
            "wants quotes around it)"
        )
    elif cells[0].startswith("#"):
        reason = f"row {number} begins with #, as comments do; delete it, or rename {cells[0]}"
    return reason


def _find_header(path: Path, lines: io.StringIO, known_columns: Collection[str]) -> str:
    """The separator of the header, before which `lines` stands then."""
    known = {name.lower() for name in known_columns}
    first: tuple[int, str] | None = None  # where the header should be, and its separator
    for number in range(1, MAX_TITLE_LINES + 1):
        begin, line = lines.tell(), lines.readline()
        if not line:
            break
        if number == 1 and (stated := SEPARATOR_LINE.fullmatch(line)):
            first = (lines.tell(), stated[1])
            break
        found = {separator: _split_line(line, separator) for separator in SEPARATORS}
        n_known = {separator: len(known.intersection(cells)) for separator, cells in found.items()}
        best = max(SEPARATORS, key=lambda s: (n_known[s], len(found[s])))
        is_comment = line.lstrip().startswith("#") and n_known[best] == 0
        if not line.strip() or (is_comment and first is None):
            continue
        if first is None:
            first = (begin, best)
            if n_known[best]:
                break
            if len(known.intersection(line.lower().replace('"', "").split())) > 1:
                raise DataError(f"{path} has spaces between its columns; save it with commas, semicolons or tabs")
        elif n_known[best] > 1:
            raise DataError(f"{path}: the names of its columns are in line {number}; delete what stands above them")
    begin, separator = first or (0, ",")
    lines.seek(begin)
    return separator


def _split_line(line: str, separator: str) -> list[str]:
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []
    return [_strip(cell).lower().lstrip("#").strip() for cell in cells]


def _find_data_columns(path: Path, names: Sequence[str]) -> list[int]:
    """The positions of columns that are no row numbers.

    Raises:
        DataError: Two have one name.
    """
    kept = [i for i, name in enumerate(names) if not INDEX_NAME.fullmatch(name)]
    if len({names[i] for i in kept}) < len(kept):
        raise DataError(f"{path} names a column twice: {', '.join(names)}; rename one")
    return kept
