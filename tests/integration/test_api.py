"""The examples of the public functions run, on real Ray and on generated recordings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import TINY

pytestmark = pytest.mark.ray

# One Ray for all: starting it is most of what each of them costs here. The experiment of the examples is as small as
# the classes go.
EXAMPLES = """
import doctest, sys
from pathlib import Path
from eav_ray import api
from eav_ray.config import RuntimeConfig, loading
from eav_ray.distributed import cluster

loading.EXPERIMENTS_FOLDER = Path("experiments").absolute()
finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
with cluster.connect_to_ray(RuntimeConfig(workers=1)):
    reading = ("read_windows", "read_epochs", "read_results", "read_predictions")
    for name in ("preprocess", "train", "cross_validate", *reading, "search", "evaluate"):
        for example in finder.find(getattr(api, name), name, globs={}):
            runner.run(example)
failed, tried = runner.summarize()
print(f"{tried} examples")
sys.exit(failed or tried < 15)
"""


RUNTIME = "runtime: {engine: torch, workers: 1}\n"  # which starts soonest


def test_the_examples_of_the_public_functions_run(
    cluster: dict[str, str], synthetic: Path, tuned: Path, place: Path, tmp_path: Path
) -> None:
    """Where the session's shards and its search are: what those commands have made is not made again."""
    shutil.copytree(place / "data" / "shards", tmp_path / "data" / "shards")
    shutil.copytree(tuned, tmp_path / "results")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "demo.yaml").write_text(TINY.read_text() + RUNTIME)
    (tmp_path / "data" / "EAV").symlink_to(synthetic)
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES],
        cwd=tmp_path,
        env=cluster,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "results").iterdir()} >= {"protocols", "searches", "results_pages"}
