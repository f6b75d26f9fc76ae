"""Raw recordings to Parquet shards. What is finished is skipped, so the same command continues.

python jobs/preprocess.py jobs/experiments/eav.yaml data.root=/data/EAV
"""

from eav_ray.runtime.check import problem_lines
from eav_ray.runtime.cli import Arguments, door, experiment_of
from eav_ray.runtime.preprocess import preprocess, shard_store


def job(arguments: Arguments) -> None:
    experiment = experiment_of(arguments)
    done = preprocess(experiment)
    windows = sum(s.rows for s in done.index.shards)
    print(f"{windows} windows in {len(done.index.shards)} shards, {done.skipped} of them finished earlier")
    print(f"{len(done.problems)} recordings or files set aside", *problem_lines(done.problems), sep="\n")
    print(f"shards: {shard_store(experiment)}")


if __name__ == "__main__":
    door(__doc__ or "", job)
