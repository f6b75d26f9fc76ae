"""Models and training run where Ray and the readers of files are not installed: on a GPU node, or in a notebook."""

import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY

BLOCKED = ("ray", "mne", "av", "h5py", "sklearn")
IMPORT_ALL = f"""
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")
        return None

def fail(name):
    raise

sys.meta_path.insert(0, Blocker())
name = sys.argv[1]
module = importlib.import_module(name)
names = [found.name for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{{name}}.", fail)]
for one in names:
    importlib.import_module(one)
print(len(names))
"""


@pytest.mark.parametrize(("name", "modules"), [("eav_ray.models", 15), ("eav_ray.training", 20), ("benchmarks.gpu", 0)])
def test_models_and_training_are_imported_without_ray_and_readers_of_files(name: str, modules: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, name], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= modules
