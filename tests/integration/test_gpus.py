"""Workers that asked for no GPU see none, whatever the environment of their node says (R24)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.clusters import PATIENCE_S

pytestmark = pytest.mark.ray

# Prints the CUDA_VISIBLE_DEVICES of an actor of Ray before and after it is set up, and of a worker of Ray Train when
# its function is called.
SCRIPT = """
import json, os, sys
from pathlib import Path
import ray
from eav_ray.config import Experiment, override
from eav_ray.distributed import cluster, worker_groups
from eav_ray.distributed.connection import connect_experiment

def show() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")

class Actor:
    def __init__(self, runtime):
        self.before, self.device = show(), str(cluster.set_up_torch(runtime))

    def report(self):
        return self.before, show(), self.device

results, seen = Path(sys.argv[1]), Path(sys.argv[1], "seen")

def work(config):
    seen.write_text(str(show()))

worker_groups.run_worker = work
with connect_experiment(override(Experiment(), {"store.results": str(results), "runtime.workers": 1})) as e:
    actor = ray.get(cluster.start_actor_here(Actor, e.runtime).report.remote())
    worker_groups.WorkerGroup(0, e, None, (), None).run()
print(json.dumps({"gpus": e.runtime.gpus, "actor": actor, "train": seen.read_text()}))
"""


def test_workers_see_no_gpu_though_the_node_shows_one(cluster: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {"gpus": 0, "actor": ["0", "", "cpu"], "train": ""}
