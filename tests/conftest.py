"""Where real recordings and schemas are, and the page that `make chaos` leaves."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS, ROWS, list_rows

settings.register_profile(
    "default", max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("chaos", settings.get_profile("default"), max_examples=5_000, derandomize=False)
settings.load_profile(os.environ.get("EAV_RAY_HYPOTHESIS", "default"))


def _find_shared(what: str, name: str, variable: str) -> Path:
    """The folder that a variable names, else that beside the repository.

    Without it the test is skipped; where EAV_RAY_REQUIRE_REAL is 1, it fails.
    """
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / name)
    if not folder.is_dir():
        reason = f"no {what}: {folder} is no folder; set {variable} to the one that holds them"
        pytest.fail(reason) if os.environ.get("EAV_RAY_REQUIRE_REAL") == "1" else pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real recordings."""
    return _find_shared("real recordings", "real", "EAV_RAY_REAL")


@pytest.fixture(scope="session")
def kuberay() -> Path:
    """The folder of the KubeRay operator's schemas."""
    return _find_shared("schemas of KubeRay", "kuberay", "EAV_RAY_KUBERAY")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if list_rows(item.nodeid):
            item.add_marker(pytest.mark.reliability)


class Page:
    """docs/results/reliability.md, of the tests that ran."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
        if report.failed:  # at once: the run takes an hour, and pytest tells at its end
            print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}\n{report.capstderr[-4000:]}", flush=True)

    def pytest_sessionfinish(self) -> None:
        from benchmarks.common import format_page_head

        ran = {row for test in self.outcomes for row in list_rows(test)}
        if ran < {row for row, (_, _, places) in ROWS.items() if places}:
            return  # a part of the tests makes no page
        lines = [
            *format_page_head("What must survive", "make chaos"),
            f"{(time.monotonic() - self.began) / 60:.0f} minutes; cases that draw at random drew anew. A case may "
            "kill, cut or damage many times over.",
            "",
            "| row | what is done | what must come of it | cases | passed | failed | skipped | seconds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row, (injection, outcome, _) in ROWS.items():
            tests = [test for test in self.outcomes if row in list_rows(test)]
            counts = [sum(self.outcomes[t] == kind for t in tests) for kind in ("passed", "failed", "skipped")]
            reported = " | ".join(map(str, (len(tests), *counts, round(sum(self.seconds[t] for t in tests)))))
            lines.append(f"| {row} | {injection} | {outcome} | {reported if tests else 'not shown yet | | | |'} |")
        (REPOSITORY / "docs" / "results" / "reliability.md").write_text("\n".join([*lines, ""]))


def pytest_configure(config: pytest.Config) -> None:
    if CHAOS and not hasattr(config, "workerinput") and not config.option.collectonly:
        config.pluginmanager.register(Page())
