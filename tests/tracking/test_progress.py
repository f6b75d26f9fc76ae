"""The progress line of a job that writes into a file is whole, and its counts and marks are those that belong there."""

import pytest

from eav_ray.tracking.progress import open_progress_bar

TITLE = "train inner folds, for the temperature"
NOTE = " waits for 2 workers' 1 CPU and 1 GPU each to be free (12 nodes are there), {and more}"


def test_a_line_is_whole_and_has_no_dangling_marks(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress_bar(TITLE, 20, "epochs") as bar:
        bar.set_done(0.04, note=" ")
        bar.set_done(3.0, note=NOTE)
        bar.set_done(3.5)
    lines = [line.rstrip() for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert f"{TITLE} (epochs)" in lines[0] and lines[0].endswith("ETA ?") and "   0/20" in lines[0]
    assert lines[-1].endswith(NOTE) and " 3.5/20" in lines[-1]
    with open_progress_bar(TITLE, 20, "epochs", done=10) as bar:
        bar.set_done(10)
    assert "10/20" in capsys.readouterr().err.replace("\r", "\n").splitlines()[-1]
    assert not any(".0/" in line or line.endswith(",") for line in lines)
