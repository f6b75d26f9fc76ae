"""A cell is the number that stands in it, or none: nothing else is taken for a number."""

import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eav_ray.data.io.numbers import parse_number

NUMBERS = st.floats(-1e30, 1e30)


@given(value=NUMBERS, form=st.sampled_from(["r", ".17g", ".17e", "+.17g"]))
def test_every_number_is_read_as_it_stands(value: float, form: str) -> None:
    text = repr(value) if form == "r" else format(value, form)
    assert parse_number(text) == parse_number(value) == value
    assert parse_number(text.replace(".", ","), decimal_comma=True) == value


@given(text=st.text())
def test_no_text_is_read_as_a_number_that_it_is_not(text: str) -> None:
    try:
        number = parse_number(text)
    except ValueError as error:
        assert repr(text) in str(error)
        return
    # Python takes more for a number: underscores, digits of other scripts, spaces.
    assert math.isnan(number) or (float(text) == number and text.isascii() and text.strip("0123456789.eE+-") == "")


@pytest.mark.parametrize(
    "cell", ["1_000", "٣", "1 000", "1,000.5", "0x10", "inf", "True", "2024-01-01", "½", "--1", "5%"]
)
def test_what_looks_like_a_number_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="which is no number"):
        parse_number(cell)


@pytest.mark.parametrize("cell", [True, [1.0], b"1", pd.Timestamp("2024-01-01")])
def test_cells_of_parquet_that_are_no_numbers_are_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="which is no number"):
        parse_number(cell)


def test_what_is_missing_or_infinite_is_no_number() -> None:
    for cell in ("", "NA", "n/a", "nan", "#DIV/0!", None, math.nan):
        assert math.isnan(parse_number(cell))
    for cell in ("1e999", math.inf, -math.inf, 10**400):
        with pytest.raises(ValueError, match="which is infinite"):
            parse_number(cell)
    for cell in ("-1.7976931348623157e+308", 3.4028235e38):  # missing in SPSS, and in much else
        with pytest.raises(ValueError, match=r"which is beyond 1e\+30, as marks of missing numbers are"):
            parse_number(cell)
