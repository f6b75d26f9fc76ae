"""Fetch the best checkpoint of a search from its results store, every file checked against its hash.

python jobs/pull.py results --list
python jobs/pull.py s3://lab/results --study eav-0f3a... --to best
"""

from eav_ray.errors import ConfigError
from eav_ray.runtime.cli import Arguments, absolute_path, door
from eav_ray.runtime.pull import pull, studies


def job(arguments: Arguments) -> None:
    if len(arguments.paths) != 1 or arguments.changes:
        raise ConfigError("give exactly one results store, for example: python jobs/pull.py results --list")
    (store,) = arguments.paths
    if "list" in arguments.flags:
        print(studies(store))
        return
    to = absolute_path("--to", arguments.flags.get("to") or "best", remote=False)
    path = pull(store, to, study=arguments.flags.get("study", ""))
    print(f"checkpoint: {path}")
    print(f"predict with it: python jobs/predict.py {path} data.root=... ")


if __name__ == "__main__":
    door(__doc__ or "", job, flags=("list!", "to", "study"))
