"""Predict raw recordings with a checkpoint: one row a window, one a recording, as CSV.

python jobs/predict.py best data.root=/data/new_people --out predictions.csv
"""

from eav_ray.errors import ConfigError
from eav_ray.runtime.cli import Arguments, absolute_path, door
from eav_ray.runtime.evaluate import predict_to_csv


def job(arguments: Arguments) -> int:
    if len(arguments.paths) != 1:
        raise ConfigError("give exactly one checkpoint folder; jobs/train.py and jobs/pull.py print its path")
    out = absolute_path("--out", arguments.flags.get("out") or "predictions.csv", remote=False)
    done = predict_to_csv(arguments.paths[0], arguments.changes, out)
    print(done.text)
    return 0


if __name__ == "__main__":
    door(__doc__ or "", job, flags=("out",))
