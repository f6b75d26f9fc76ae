"""Every row of what must survive names tests that exist."""

import pytest

from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import ROWS, list_rows


@pytest.mark.parametrize("row", sorted(ROWS))
def test_a_row_names_tests_that_are_there(row: str) -> None:
    places = ROWS[row][2]
    assert places
    for place in places:
        file, _, test = place.partition("::")
        assert f"def {test}" in (REPOSITORY / file).read_text(), place
        assert row in list_rows(f"{file}::{test or 'test_anything'}[case]")


def test_rows_are_complete_and_in_order() -> None:
    numbers = [int(row.removeprefix("R")) for row in ROWS]
    assert numbers == sorted(numbers) and set(range(1, 21)) < set(numbers)
