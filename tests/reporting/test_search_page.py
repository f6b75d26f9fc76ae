"""The page of a search shows every candidate, in figures that are also told in words, and needs no other file."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from eav_ray.config import SearchConfig
from eav_ray.reporting.search_page import render_search_page
from eav_ray.reporting.sections.search import select_pareto_front, summarize_candidates
from eav_ray.training.run_spec import SELECTION_METRIC
from tests.helpers.searches import SHARES, SPACE, draw_candidates


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_page_needs_no_other_file_and_says_in_words_what_it_draws(count: int, priced: bool) -> None:
    search = SearchConfig(space=SPACE, cost="parameters" if priced else "")
    shown = render_search_page("a<b>", draw_candidates(count, priced=priced), SHARES if count > 2 else {}, search)
    assert "Search a&lt;b&gt;" in shown and "<b>" not in shown
    figures = re.findall(r'<figure role="img" aria-label="([^"]+)">(<svg.*?</svg>)', shown, re.DOTALL)
    assert len(figures) == 1 + (count > 2) + (count > 1) + priced and len(figures) == shown.count("<svg")
    for reported, drawn in figures:
        assert len(reported) > 20
        ElementTree.fromstring(drawn)
    links = [link for link in re.findall(r'(?:href|src)="([^"]*)"', shown) if not link.startswith(("#", "data:"))]
    assert not links
    assert shown == render_search_page(
        "a<b>", draw_candidates(count, priced=priced), SHARES if count > 2 else {}, search
    )


def test_a_search_without_a_score_has_a_page() -> None:
    failed = draw_candidates(1).assign(**{"state": "FAIL", SELECTION_METRIC: np.nan})
    assert "1 failed" in render_search_page("s", failed, {}, SearchConfig(space=SPACE))


def test_each_candidate_is_one_row_with_the_mean_of_its_folds() -> None:
    rows = draw_candidates(12)
    found = summarize_candidates(rows)
    assert list(found.index) == list(range(12))
    assert found.loc[0, "score"] == pytest.approx(100 * rows[rows["candidate"] == 0][SELECTION_METRIC].mean())
    assert found.loc[6, "state"] == "PRUNED" and found.loc[6, "folds"] == 1


def test_no_candidate_of_the_front_is_beaten_in_both() -> None:
    whole = summarize_candidates(draw_candidates(60, priced=True)).query("state == 'COMPLETE'")
    best = select_pareto_front(whole)
    for number, one in whole.iterrows():
        beaten = ((whole["score"] >= one["score"]) & (whole["cost"] < one["cost"])) | (
            (whole["score"] > one["score"]) & (whole["cost"] <= one["cost"])
        )
        assert (number in best.index) != beaten.any()


def test_candidates_that_predict_numbers_have_a_ccc_and_no_percent() -> None:
    rows = draw_candidates(30, priced=False)
    rows = rows.assign(validation_recording_ccc=rows[SELECTION_METRIC])
    found = summarize_candidates(rows)
    means = rows.groupby("candidate")[SELECTION_METRIC].mean()
    assert found["score"].dropna().to_numpy() == pytest.approx(means.dropna().to_numpy())
    page = render_search_page("s", rows, SHARES, SearchConfig(space=SPACE))
    assert "mean CCC of recordings" in page and "accuracy" not in page and "score, %" not in page
