"""Fetch the best checkpoints of a search from its results store, every file checked against its hash.

python jobs/pull.py results --list
python jobs/pull.py results --list --study eav-0f3a... [--metric validation_window_accuracy] [--top 10]
python jobs/pull.py s3://lab/results --study eav-0f3a... --to best [--top 3] [--next-best]

--list shows the searches of a store, or the candidates of one, also while it runs. --top K fetches the K best, of which
the search keeps as many as search.refit says. --next-best takes the next one where one is damaged.
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.run_command import run_command
from eav_ray.config.paths import resolve_user_path
from eav_ray.errors import ConfigError
from eav_ray.pipelines.inference.pull import format_candidates, format_studies, pull
from eav_ray.training.run_spec import SELECTION_METRIC


def main(arguments: Arguments) -> None:
    if len(arguments.paths) != 1 or arguments.changes:
        raise ConfigError("give exactly one results store, for example: python jobs/pull.py results --list")
    (store,), flags = arguments.paths, arguments.flags
    study, top = flags.get("study", ""), flags.get("top", "")
    if top and not (top.isdigit() and int(top)):
        raise ConfigError(f"--top={top} is not a number of 1 or more")
    if "list" in flags:
        n_shown = int(top or 20)
        print(
            format_candidates(store, study, metric=flags.get("metric") or SELECTION_METRIC, top=n_shown)
            if study
            else format_studies(store)
        )
        return
    if "metric" in flags:
        raise ConfigError("--metric orders what --list --study shows; the best are those by the search's own score")
    to = resolve_user_path("--to", flags.get("to") or "best", allow_remote=False)
    result = pull(store, to, study=study, top=int(top or 1), next_best="next-best" in flags)
    for line in result.skipped:
        print(f"skipped: {line}")
    for path in result.paths:
        print(f"checkpoint: {path}")
    print(f"predict with it: python jobs/predict.py {result.paths[0]} data.root=... ")


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("list!", "to", "study", "top", "metric", "next-best!"))
