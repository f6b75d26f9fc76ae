"""Write the page of a search."""

import html

import matplotlib
import pandas as pd

from eav_ray.config import SearchConfig
from eav_ray.reporting.html import render_document
from eav_ray.reporting.sections.search import STATE_STYLES, render_search_sections, summarize_candidates


def render_search_page(
    study: str, candidate_folds: pd.DataFrame, importances: dict[str, float], search: SearchConfig
) -> str:
    """One page that needs no other file.

    Args:
        candidate_folds: `candidates.parquet`.
        importances: Key of the space -> its share of the spread of the scores (`StudyClient.compute_importances`).
    """
    matplotlib.use("agg")
    candidates = summarize_candidates(candidate_folds)
    counts = ", ".join(
        f"{sum(candidates['state'] == s)} {label}"
        for s, (label, _) in STATE_STYLES.items()
        if s in set(candidates["state"])
    )
    head = (
        f"<h1>Search {html.escape(study)}</h1>"
        f"<p>{len(candidates)} candidates: {counts}. A score is the mean over inner folds of the training people; "
        "nobody who is tested has a part in it. The best of many is too good by luck: what it is worth says its "
        "test.</p>"
    )
    return render_document(f"Search {study}", [head, *render_search_sections(candidate_folds, importances, search)])
