"""The page of a search shows every candidate, in figures that are also told in words, and needs no other file."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from eav_ray.config import SearchConfig, SearchDimension
from eav_ray.reporting.search_page import render_search_page
from eav_ray.reporting.sections.search import select_pareto_front, summarize_candidates
from eav_ray.training.run_spec import SELECTION_METRIC

SPACE = {
    "fusion.heads": SearchDimension(choice=(1, 2, 4, 8)),
    "fusion.kind": SearchDimension(choice=("gated", "shared_attention")),
    "optim.lr": SearchDimension(low=1e-4, high=1e-2, log=True),
}
SHARES = {"fusion.heads": 0.7, "optim.lr": 0.25, "fusion.kind": 0.05}


def trials(count: int, *, priced: bool = False) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        state = "PRUNED" if number % 7 == 6 else "FAIL" if number == 3 else "COMPLETE"
        changes = {"fusion.heads": int(rng.choice([1, 2, 4, 8])), "optim.lr": float(10 ** rng.uniform(-4, -2))}
        changes |= {"fusion.kind": str(rng.choice(["gated", "shared_attention"]))}
        for fold in range(1 if state == "PRUNED" else 3):
            score = np.nan if state == "FAIL" else rng.uniform(0.3, 0.8)
            row = {
                "candidate": number,
                "state": state,
                "changes": json.dumps(changes),
                "fold": fold,
                SELECTION_METRIC: score,
            }
            rows.append(row | ({"cost": 1000.0 * changes["fusion.heads"] + number} if priced else {}))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_page_needs_no_other_file_and_says_in_words_what_it_draws(count: int, priced: bool) -> None:
    search = SearchConfig(space=SPACE, cost="parameters" if priced else "")
    shown = render_search_page("a<b>", trials(count, priced=priced), SHARES if count > 2 else {}, search)
    assert "Search a&lt;b&gt;" in shown and "<b>" not in shown
    figures = re.findall(r'<figure role="img" aria-label="([^"]+)">(<svg.*?</svg>)', shown, re.DOTALL)
    assert len(figures) == 1 + (count > 2) + (count > 1) + priced and len(figures) == shown.count("<svg")
    for told, drawn in figures:
        assert len(told) > 20
        ElementTree.fromstring(drawn)
    links = [link for link in re.findall(r'(?:href|src)="([^"]*)"', shown) if not link.startswith(("#", "data:"))]
    assert not links
    assert shown == render_search_page("a<b>", trials(count, priced=priced), SHARES if count > 2 else {}, search)


def test_a_search_without_a_score_has_a_page() -> None:
    failed = trials(1).assign(**{"state": "FAIL", SELECTION_METRIC: np.nan})
    assert "1 failed" in render_search_page("s", failed, {}, SearchConfig(space=SPACE))


def test_each_candidate_is_one_row_with_the_mean_of_its_folds() -> None:
    rows = trials(12)
    found = summarize_candidates(rows)
    assert list(found.index) == list(range(12))
    assert found.loc[0, "score"] == pytest.approx(100 * rows[rows["candidate"] == 0][SELECTION_METRIC].mean())
    assert found.loc[6, "state"] == "PRUNED" and found.loc[6, "folds"] == 1


def test_no_candidate_of_the_front_is_beaten_in_both() -> None:
    whole = summarize_candidates(trials(60, priced=True)).query("state == 'COMPLETE'")
    best = select_pareto_front(whole)
    for number, one in whole.iterrows():
        beaten = ((whole["score"] >= one["score"]) & (whole["cost"] < one["cost"])) | (
            (whole["score"] > one["score"]) & (whole["cost"] <= one["cost"])
        )
        assert (number in best.index) != beaten.any()
