"""Write the page of a search."""

import matplotlib
import pandas as pd

from eav_ray.config import SearchConfig
from eav_ray.reporting.html import Page
from eav_ray.reporting.sections.search import STATE_STYLES, build_search_sections, summarize_candidates
from eav_ray.words import format_count


def render_search_page(
    study: str, candidate_folds: pd.DataFrame, importances: dict[str, float], search: SearchConfig
) -> str:
    """Render one page that needs no other file.

    Args:
        candidate_folds: `candidates.parquet`.
        importances: Key of the space -> its share of the spread of the scores (`StudyClient.compute_importances`).
    """
    matplotlib.use("agg")
    states = summarize_candidates(candidate_folds)["state"]
    counts = ", ".join(f"{sum(states == s)} {label}" for s, (label, _) in STATE_STYLES.items() if s in set(states))
    introduction = (
        f"{format_count(len(states), 'candidate')}: {counts}. A score is the mean over inner folds of the training "
        "people; nobody who "
        "is tested has a part in it. The best of many is too good by luck: what it is worth says its test."
    )
    title, sections = f"Search {study}", build_search_sections(candidate_folds, importances, search)
    return Page(title, sections, heading=title, introduction=introduction).render()
