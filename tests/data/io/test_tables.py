"""Tables are read as programs of laboratories write them, or refused with the cause; no row is lost without a word."""

import csv
import datetime
import io
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from eav_ray.data.io import tables
from eav_ray.data.io.tables import Table, read_tabular_file
from eav_ray.errors import DataError

KNOWN = ("subject", "recording", "label")
HEADER, ROWS = ("subject", "recording", "label"), (("Jörg", "01", "calm, at rest"), ("Anna", "1", "5|6;7"))
EXPECTED = {"subject": ["Jörg", "Anna"], "recording": ["01", "1"], "label": ["calm, at rest", "5|6;7"]}


def join(separator: str, end: str = "\n", quote: str = '"') -> str:
    return "".join(separator.join(quote + cell + quote for cell in row) + end for row in (HEADER, *ROWS))


def read(folder: Path, content: str | bytes, name: str = "mine.csv") -> Table:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_tabular_file(folder / name, KNOWN)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_separators_line_ends_and_encodings_read_alike(tmp_path: Path, separator: str, end: str, encoding: str) -> None:
    table = read(tmp_path, join(separator, end).encode(encoding))
    assert (table.columns, list(table.numbers), table.problems, table.remarks) == (EXPECTED, [1, 2], (), ())


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf16_of_both_orders_of_bytes_is_read(tmp_path: Path, mark: bytes) -> None:
    text = join(",").encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
    assert read(tmp_path, mark + text).columns == EXPECTED


def test_the_separator_is_found_by_the_header_alone(tmp_path: Path) -> None:
    """Rows with more of another separator than of the right one."""
    table = read(tmp_path, "subject;recording;label\nMeier, Jörg;1;a,b,c,d\n")
    assert table.columns == {"subject": ["Meier, Jörg"], "recording": ["1"], "label": ["a,b,c,d"]}
    assert read(tmp_path, "sep=;\r\nsubject;recording;label\r\na;b;c\r\n").columns["label"] == ["c"]


def test_windows_1252_is_read_and_said_with_a_word_that_shows_it(tmp_path: Path) -> None:
    table = read(tmp_path, join(",").encode("cp1252"))
    assert table.columns == EXPECTED
    assert len(table.remarks) == 1 and "read as Windows-1252, as in 'Jörg'" in table.remarks[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (join(",").encode() + b"K\xe4the,2,calm\n", r"damaged UTF-8 \(line 4\); save it as CSV \(UTF-8\) again"),
        (join(",").encode("utf-16")[:-1], r"damaged UTF-16"),
        (b"\xff\x00\x80,\x81\n1,2,3\n", r"neither UTF-8 nor Windows-1252 \(line 1\)"),
        (join(",").encode("utf-16-le"), "no text, or UTF-16 without a mark"),
        (b"subject,recording,label\n1,2,\0\n", "no text, or UTF-16 without a mark"),
        (b"Recordings of 2024\n\nsubject,recording,label\n1,2,3\n", "names of its columns are in line 3; delete"),
        (b'"subject" "recording" "label"\n"1" "a" "x"\n', "has spaces between its columns; save it with commas"),
        (b'subject,recording,label\n1,2,3\n"2,2,3\n3,2,3\n', "row 2 cannot be read .*a quote must be closed"),
        (b'"subject"x,recording,label\n1,2,3\n', "the names of columns cannot be read"),
        (b"subject,recording,subject\n1,2,3\n", "names a column twice: subject, recording, subject; rename one"),
        (b"subject,recording,label\n1,anna,1,calm\n2,anna,2,calm\n", "one cell more in each row than in its header"),
        (b"\xd0\xcf\x11\xe0 and so on", "an old Excel workbook; save it as CSV"),
        (b"ARROW1\0\0", "an Arrow or Feather file; save it as CSV"),
        (b"\x1f\x8b\x08\x00", "a compressed file; save it as CSV"),
        (b"PAR1 no", "cannot be read as a CSV or Parquet table"),
    ],
)
def test_what_has_no_single_meaning_is_refused_with_the_cause(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=rf"mine\.csv.*{words}") as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


def test_a_workbook_is_refused_with_the_way_out(tmp_path: Path) -> None:
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w") as archive:
        archive.writestr("xl/workbook.xml", "")
    with pytest.raises(DataError, match=r"mine\.xlsx is an Excel .* workbook, .*; save it as CSV \(UTF-8\) or Parquet"):
        read(tmp_path, book.getvalue(), "mine.xlsx")


def test_a_text_that_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_TEXT_BYTES", 2**20)
    with pytest.raises(DataError, match="more than 1 MiB; save it as Parquet"):
        read(tmp_path, b"subject\n" + b"1\n" * 2**20)


def test_rows_count_as_users_count_them_and_none_is_lost_without_a_word(tmp_path: Path) -> None:
    rows = [
        "# all by Anna",
        "",
        "1,a,calm",
        "2,b",
        "3,c,calm,,",
        "4,d,calm,glad",
        ",,",
        "#5,e,calm",
        "6,f,sad",
        "",
        " ",
    ]
    table = read(tmp_path, "\n".join(("# by our recorder", "subject,recording,label", *rows)))
    assert table.columns == {"subject": ["1", "3", "6"], "recording": ["a", "c", "f"], "label": ["calm", "calm", "sad"]}
    assert list(table.numbers) == [3, 5, 9]
    assert [number for number, _ in table.problems] == [4, 6, 8]
    assert [reason.split(";")[0] for _, reason in table.problems] == [
        "row 4 has 2 cells, the header 3",
        "row 6 has 4 cells, the header 3",
        "row 8 begins with #, as comments do",
    ]


def test_a_quote_out_of_place_costs_its_own_row(tmp_path: Path) -> None:
    table = read(tmp_path, 'subject,recording,label\n1,a,x\n1,b,"calm" today\n1,c,5" disk\n1,d,y\n')
    assert table.columns["label"] == ["x", '5" disk', "y"] and list(table.numbers) == [1, 3, 4]
    ((number, reason),) = table.problems
    assert number == 2 and reason.startswith("row 2 cannot be read (") and "a quote must be closed" in reason


def test_columns_of_row_numbers_and_without_a_name_are_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame(dict(zip(HEADER, zip(*ROWS, strict=True), strict=True)))
    frame.to_csv(tmp_path / "index.csv")
    pd.read_csv(tmp_path / "index.csv", dtype=str).to_csv(tmp_path / "twice.csv")
    frame.set_index(pd.Index([7, 9])).to_parquet(tmp_path / "index.parquet")
    for name in ("index.csv", "twice.csv", "index.parquet"):
        assert read_tabular_file(tmp_path / name, KNOWN).columns == EXPECTED, name
    assert read(tmp_path, "subject,recording,label,\n1,2,3,\n").columns["label"] == ["3"]
    assert list(read(tmp_path, "Unnamed: 0.1,subject,recording,label\n0,1,2,3\n").columns) == list(HEADER)


def test_names_are_written_in_one_way(tmp_path: Path) -> None:
    """Letters composed or not, invisible marks, spaces: what looks the same is the same."""
    rows = "".join(f"{name},1.0,x\n" for name in ("Jo\u0308rg", "J\u00f6rg", "J\u00f6rg\u200b", " J\u00f6rg\u00a0"))
    table = read(tmp_path, "subject,recording,label\n" + rows)
    assert set(table.read_names("subject")) == {"Jörg"}
    assert set(table.read_names("recording")) == {"1"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.0", "1"), ("0.0", "0"), ("-3.00", "-3"), ("01", "01"), ("01.0", "01.0"), ("1.5", "1.5"), ("1.10", "1.10")],
)
def test_whole_numbers_lose_what_empty_cells_gave_them(tmp_path: Path, text: str, expected: str) -> None:
    table = read(tmp_path, f"subject,recording,label\n{text},2,3\n")
    assert table.read_names("subject") == [expected]
    semicolons = read(tmp_path, f"subject;recording;label\n{text.replace('.', ',')};2;3\n")
    assert semicolons.read_names("subject") == [expected if expected != text else text.replace(".", ",")]


def test_cells_of_parquet_become_the_text_that_was_meant(tmp_path: Path) -> None:
    days = [datetime.datetime(2024, 1, 3), datetime.datetime(2024, 1, 3, 14, 30)]
    columns = {
        "whole": pa.array([1.0, None]),
        "nan": pa.array([np.nan, 2.5]),
        "single": pa.array([3.0, 4.0], pa.float32()),
        "integer": pa.array([7, None]),
        "category": pa.array(["calm", "glad"]).dictionary_encode(),
        "large": pa.array(["01", " x "], pa.large_string()),
        "bytes": pa.array(["Jörg".encode(), b""]),
        "decimal": pa.array([Decimal("1.00"), Decimal("1.50")]),
        "bool": pa.array([True, False]),
        "time": pa.array(days, pa.timestamp("us")),
        "day": pa.array([datetime.date(2024, 1, 3), None]),
        "empty": pa.nulls(2),
    }
    parquet.write_table(pa.table(columns), tmp_path / "mine.dat")  # known by its content, not its name
    table = read_tabular_file(tmp_path / "mine.dat", KNOWN)
    assert {name: table.read_names(name) for name in columns} == {
        "whole": ["1", ""],
        "nan": ["", "2.5"],
        "single": ["3", "4"],
        "integer": ["7", ""],
        "category": ["calm", "glad"],
        "large": ["01", "x"],
        "bytes": ["Jörg", ""],
        "decimal": ["1", "1.50"],
        "bool": ["True", "False"],
        "time": ["2024-01-03", "2024-01-03 14:30:00"],
        "day": ["2024-01-03", ""],
        "empty": ["", ""],
    }


@pytest.mark.parametrize("cells", [pa.array([["a"], ["b"]]), pa.array([{"a": 1}, {"a": 2}]), pa.array([b"\xff", b""])])
def test_cells_that_are_no_text_are_refused(tmp_path: Path, cells: pa.Array) -> None:
    parquet.write_table(pa.table({"subject": cells}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="list, where text|can't decode"):
        read_tabular_file(tmp_path / "a.parquet", KNOWN).read_names("subject")


CELLS = ("", "a", "Jörg", "a,b", "a;b", "a\tb", 'say "x"', "two\nlines", "1.5", "#", "a|b", "'q'", "x  y", "\\", "=1+1")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_whatever_a_writer_quotes_comes_back(tmp_path: Path, separator: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = [[f"s{i}", *rng.choice(CELLS, 4)] for i in range(rng.integers(1, 8))]
        names = ["subject", "recording", "label", "note, long", "x"]
        with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([names, *rows])
        table = read_tabular_file(tmp_path / "a.csv", KNOWN)
        assert table.columns == dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        assert table.problems == ()


def test_damaged_tables_are_read_or_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame(dict(zip(HEADER, zip(*ROWS, strict=True), strict=True)))
    frame.to_parquet(tmp_path / "a.parquet")
    wholes = [join(",").encode(), join(";").encode("utf-16"), join("\t").encode("cp1252")]
    wholes.append((tmp_path / "a.parquet").read_bytes())
    rng, n_read = np.random.default_rng(0), 0
    for whole in wholes:
        for _ in range(150):
            garbled = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
            for place in rng.integers(0, len(garbled), rng.integers(1, 5)):
                garbled[place] = rng.integers(256)
            try:
                table = read(tmp_path, bytes(garbled))
            except DataError as error:
                assert "mine.csv" in str(error) and "\n" not in str(error)
                continue
            n_read += 1
            assert {len(cells) for cells in table.columns.values()} <= {len(table.numbers)}
    assert 50 < n_read < 550
