"""Counts and durations read as a person would write them."""

import pytest

from eav_ray.words import format_count, format_duration


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "encoder training", "1 encoder training"),
        (0, "fold", "0 folds"),
        (3, "person", "3 people"),
        (1, "person", "1 person"),
        (2, "search", "2 searches"),
        (2, "class", "2 classes"),
        (2, "study", "2 studies"),
        (2, "day", "2 days"),
    ],
)
def test_a_count_has_the_noun_that_it_wants(count: int, noun: str, text: str) -> None:
    assert format_count(count, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "5 seconds"), (41, "40 seconds"), (100, "2 minutes"), (3000, "50 minutes"), (9000, "2.5 hours")],
)
def test_a_duration_has_a_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
