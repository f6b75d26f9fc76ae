"""Raw recordings to Parquet shards. What is finished is skipped, so the same command continues.

python jobs/preprocess.py eav_ray/experiments/fusion.yaml data.root=/data/EAV
python jobs/preprocess.py eav_ray/experiments/fusion.yaml data.root=/data/EAV --frames   (faces on the quality page too)
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.data.shards.location import open_shard_store
from eav_ray.pipelines.preprocess.dataset_check import format_problems
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.preprocess.quality_page import write_quality_page


def main(arguments: Arguments) -> None:
    experiment = prepare_experiment(arguments, used_stores=("shards",))
    result = preprocess(experiment)
    windows = sum(s.rows for s in result.index.shards)
    print(f"{windows} windows in {len(result.index.shards)} shards, {result.n_skipped} of them finished earlier")
    print(f"{len(result.problems)} recordings or files set aside", *format_problems(result.problems), sep="\n")
    table, page = write_quality_page(experiment, result, frames="frames" in arguments.flags)
    print(table)
    print(f"shards: {open_shard_store(experiment)}\nquality: {page}")


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("frames!",))
