"""The notebook runs from its first cell to its last, and what it shows is what it prints."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.notebooks import MAX_OUTPUT, list_code_cells, read_notebook, read_outputs
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.ray
NOTEBOOK = REPOSITORY / "examples" / "read_results.ipynb"
RUN = "import json, sys\nfrom pathlib import Path\nfrom tests.helpers.notebooks import read_notebook, run_cells\n"
RUN += "printed = run_cells(read_notebook(Path(sys.argv[1])))\nPath('printed.json').write_text(json.dumps(printed))"


def test_the_notebook_prints_what_it_shows(cluster: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(NOTEBOOK)]
    environment = cluster | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    printed, shown = json.loads((tmp_path / "printed.json").read_text()), read_outputs(read_notebook(NOTEBOOK))
    assert printed == shown  # nothing that it prints depends on the processor


def test_the_notebook_is_small_and_names_no_machine() -> None:
    text, notebook = NOTEBOOK.read_text(), read_notebook(NOTEBOOK)
    assert len(text) < 20_000 and not re.search(r"(^|[\s\"'(])/(?!/)", "\n".join(read_outputs(notebook)))
    assert [cell["execution_count"] for cell in list_code_cells(notebook)] == list(
        range(1, 1 + len(list_code_cells(notebook)))
    )
    assert all(len(out) < MAX_OUTPUT for out in read_outputs(notebook))
