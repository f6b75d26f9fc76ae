"""Refuse identifiers that say less to a newcomer than the field's own word: `python -m tests.helpers.check_names`.

Only names of code are looked at, never prose: definitions, arguments, attributes, variables and imported names.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import REPOSITORY

# What must not come back -> what to call it. A name is refused where it equals one of these, or with `_` around it.
REFUSED = {
    "told": "io_errors, completed, log, drain_progress or describe_*",
    "door": "run_command or main",
    "Owner": "StudyClient",
    "Leases": "CandidateSearcher",
    "Looks": "PruningSchedule",
    "looks": "rungs",
    "lanes": "max_concurrent_trials",
    "at_once": "max_concurrent_trials",
    "why_alone": "unbatchable_reason",
    "Place": "WorkerContext",
    "Saver": "CheckpointWriter",
    "Watch": "CheckpointPolicy",
    "moments": "optimizer_state",
    "settle": "sync_buffers",
    "let_go": "release_ddp",
    "together": "run_on_all_ranks, combined or fusion_batch_size",
    "same_everywhere": "broadcast_object",
    "from_first": "broadcast_int",
    "ahead": "prefetch",
    "evenly": "subsample_evenly",
    "beside": "related_results",
    "of_other_jobs": "collect_related",
    "unread": "skipped_results",
    "passed_over": "skipped",
    "kept_or_made": "load_or_run",
    "held_out": "out_of_fold_predictions",
    "sitting": "session_recordings",
    "planted": "synthetic",
    "plant": "generate",
    "evidence": "results_page",
    "reproduce": "provenance",
    "profile": "preprocessing",
    "person": "subject",
    "people": "subjects",
    "calibrate": "adapt (to a subject); calibrate_probabilities",
    "manifest": "recordings_table, index or reader",
    "distortion": "corruption",
    "distort": "corrupt",
    "distorted": "corrupted",
    "stress": "robustness",
    "late_mean": "product",
    "lapses": "draw_lost_blocks",
    "wire": "messages",
}
FOLDERS = ("eav_ray", "jobs", "benchmarks", "tests", "examples", "docs")


def list_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every identifier of a module that its author chose, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.keyword() if node.arg:
                yield node.arg, node.value.lineno
            case ast.Name() if isinstance(node.ctx, ast.Store):
                yield node.id, node.lineno
            case ast.Attribute():
                yield node.attr, node.end_lineno or node.lineno
            case ast.alias():
                yield (node.asname or node.name).rpartition(".")[2], node.lineno


def find_refused(root: Path) -> list[str]:
    """A line for each refused identifier below the folders of the project."""
    found = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        for name, line in list_names(ast.parse(path.read_text())):
            if (word := name.strip("_")) in REFUSED:
                found.append(f"{path.relative_to(root)}:{line}: {name}: call it {REFUSED[word]}")
    return found


def main() -> None:
    found = find_refused(REPOSITORY)
    print(*found, sep="\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
