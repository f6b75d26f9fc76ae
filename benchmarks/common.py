"""What the benchmarks share: goals, and the page that a run leaves."""

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eav_ray.data.io import parquet
from eav_ray.pipelines.evaluate.provenance import describe_commit, describe_hardware
from eav_ray.storage import Store

RESULTS_FOLDER = Path(__file__).parents[1] / "docs" / "results"


def find_real_data() -> Path:
    """The folder of real recordings: EAV_RAY_REAL, or `../shared/real` beside the project."""
    folder = Path(os.environ.get("EAV_RAY_REAL", Path(__file__).parents[2] / "shared" / "real"))
    if not folder.is_dir():
        sys.exit("error: no real recordings; set EAV_RAY_REAL to the folder that holds eegmat, ravdess and video")
    return folder


def parse_arguments(description: str | None, allowed_keys: Collection[str] | None = ()) -> tuple[Path, dict[str, str]]:
    """The folder that is worked in, a temporary one if none is given, and `key=value` words.

    Args:
        description: What `--help` prints: the benchmark's own docstring.
        allowed_keys: Keys that are allowed; None allows any.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="FOLDER | key=value")
    values: list[str] = parser.parse_args().words
    words = dict(w.split("=", 1) for w in values if "=" in w)
    folders = [w for w in values if "=" not in w]
    if len(folders) > 1:
        parser.error(f"one folder, not {len(folders)}: {' '.join(folders)}")
    for key in words:
        if allowed_keys is not None and key not in allowed_keys:
            parser.error(f"no key {key!r}; allowed: {', '.join(allowed_keys) or 'none'}")
    return Path(folders[0] if folders else tempfile.mkdtemp()).absolute(), words


def read_table(store: Store, name: str) -> pd.DataFrame | None:
    """A table that an earlier call kept; None where there is none."""
    return parquet.decode_dataframe(store.read(name), f"{store}/{name}") if store.exists(name) else None


def write_table(store: Store, name: str, table: pd.DataFrame) -> pd.DataFrame:
    store.write(name, parquet.encode_dataframe(table))
    return table


@dataclass(frozen=True)
class Goal:
    name: str
    value: float
    threshold: float
    unit: str = ""
    at_least: bool = True

    @property
    def is_met(self) -> bool:
        return self.value >= self.threshold if self.at_least else self.value <= self.threshold

    def __str__(self) -> str:
        requirement = f"{'at least' if self.at_least else 'at most'} {self.threshold:g}{self.unit}"
        return (
            f"goal {self.name}: {self.value:.3g}{self.unit} (needs {requirement}) {'met' if self.is_met else 'short'}"
        )


def format_page_head(title: str, command: str) -> list[str]:
    """The lines that every page of results begins with."""
    return [
        f"# {title}",
        "",
        f"- {datetime.date.today()}, commit {describe_commit()}",
        f"- {describe_hardware()}, Python {platform.python_version()}",
        f"- `{command}`",
        "",
    ]


def finish_benchmark(name: str, title: str, body: str, goals: list[Goal], *, page_name: str = "") -> int:
    """Print the goals and write the page; the exit code is 0 only if all goals are met.

    Args:
        name: Of the benchmark's module.
        page_name: Its file's name, where that is another.
    """
    words = ["FOLDER" if Path(word).exists() else word for word in sys.argv[1:]]  # no path of this machine
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    goal_lines = ["", "```", *map(str, goals), "```"] if goals else []
    text = "\n".join(
        [*format_page_head(title, " ".join([f"python -m benchmarks.{name}", *words])), body.strip(), *goal_lines, ""]
    )
    (RESULTS_FOLDER / f"{page_name or name}.md").write_text(text)
    print(body.strip(), *goals, sep="\n")
    return 0 if all(goal.is_met for goal in goals) else 1


def format_spread(values: list[float] | np.ndarray, digits: int = 2) -> str:
    """Median and range."""
    return f"{np.median(values):.{digits}f} ({np.min(values):.{digits}f} to {np.max(values):.{digits}f})"
