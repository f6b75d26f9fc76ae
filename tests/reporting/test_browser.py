"""Pages as a reader sees them: in a real browser, at the width of a desk and of a phone, with the network cut off."""

from pathlib import Path

import psutil
import pytest

from eav_ray.config import SearchConfig
from eav_ray.reporting.html import Page, Section, Table
from eav_ray.reporting.search_page import render_search_page
from tests.helpers.browser import find_faults, measure_smallest_text, open_page, read_column
from tests.helpers.searches import SHARES, SPACE, draw_candidates

DESK, PHONE = (1200, 800), (375, 812)
READABLE = 8.0  # CSS pixels; the figures' labels are 7 points, 9.3 px


@pytest.fixture(scope="module")
def search() -> str:
    return render_search_page(
        "a<b>", draw_candidates(30, priced=True), SHARES, SearchConfig(space=SPACE, cost="parameters")
    )


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_page_opens_without_errors_requests_or_sideways_scrolling(
    search: str, size: tuple[int, int], tmp_path: Path
) -> None:
    with open_page(search, *size) as shown:
        assert find_faults(shown) == []
        assert shown.evaluate("document.title") == "Search a<b>"
        picture = shown.screenshot(tmp_path / "page.png")
    assert picture.shape[1] == size[0] and picture.shape[0] > size[1]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_figures_are_readable_on_a_phone(search: str) -> None:
    with open_page(search, *PHONE) as shown:
        assert measure_smallest_text(shown) >= READABLE


def test_a_click_on_a_heading_sorts_the_table_by_number_and_another_turns_it_round() -> None:
    scores = ["9.5", "100.0", "-3.1", "1,018", "70"]
    ordered = ["-3.1", "9.5", "70", "100.0", "1,018"]
    table = Table(["name", "score"], [[f"row {n}", s] for n, s in enumerate(scores)])
    text = Page("t", [Section("s", [table])]).render()
    with open_page(text, *PHONE) as shown:
        assert read_column(shown, 2) == scores
        seen = {}
        for _ in range(2):
            shown.click("table th:nth-child(2)")
            seen[shown.evaluate("document.querySelector('th:nth-child(2)').ariaSort")] = read_column(shown, 2)
        assert seen == {"ascending": ordered, "descending": ordered[::-1]}
        assert shown.evaluate("document.querySelector('th').ariaSort") in (None, "none")
        numbers = [int(name.removeprefix("row ")) for name in read_column(shown, 1)]
        assert [scores[n] for n in numbers] == read_column(shown, 2)  # rows stay whole
        assert find_faults(shown) == []


def render_body(html: str) -> str:
    """Render a page of a body that no section would have."""
    before, after = Page("t", []).render().split("<body>")
    return f"{before}<body>{html}{after}"


BAD = render_body('<p style="width: 700px">wide</p><svg><text>k</text></svg>')
WORSE = render_body(
    '<img src="http://example.org/a.png" alt="far"><button onclick="throw new Error(\'thrown\')">b</button>'
    '<script>console.error("told"); fetch("b.json").catch(() => 0)</script>'
)


def test_the_browser_tells_what_is_wrong_with_a_page() -> None:
    with open_page(BAD, *PHONE) as shown:
        wide, untold = find_faults(shown)
        assert "716 px wide" in wide and untold.startswith("no text alternative: <svg>")
        assert measure_smallest_text(shown) == pytest.approx(15)
    with open_page(WORSE, *DESK) as shown:
        shown.click("button")
        found = "\n".join(find_faults(shown))
        with pytest.raises(RuntimeError, match="no element is"):
            shown.click("th")
    for part in ("console: error: told", "Error: thrown", "needs http://example.org/a.png", "/b.json"):
        assert part in found
    with open_page(render_body("")) as shown:
        assert find_faults(shown) == ["blank: 1 colours"]


def test_no_process_and_no_file_of_a_browser_outlives_its_page() -> None:
    file, helpers = "", []
    with pytest.raises(ZeroDivisionError), open_page(render_body("<p>a")) as shown:
        file = shown.evaluate("location.pathname")
        helpers = [p for p in psutil.Process().children(recursive=True) if "chromium" in p.name()]
        assert len(helpers) > 1 and Path(file).exists()
        raise ZeroDivisionError
    _, alive = psutil.wait_procs(helpers, timeout=0)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] and not Path(file).parent.exists()
