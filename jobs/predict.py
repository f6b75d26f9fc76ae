"""Predict recordings with a checkpoint, to Parquet or, by the name of the file, CSV: a row a window, a row a recording.

python jobs/predict.py best data.root=/data/new_people --out predictions.parquet
python jobs/predict.py best data.root=/data/EAV store.shards=data/shards --shards     # windows that are preprocessed
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.run_command import run_command
from eav_ray.config.paths import resolve_user_path
from eav_ray.errors import ConfigError
from eav_ray.pipelines.inference.export import predict_to_file


def main(arguments: Arguments) -> int:
    if len(arguments.paths) != 1:
        raise ConfigError("give exactly one checkpoint folder; jobs/train.py and jobs/pull.py print its path")
    out = resolve_user_path("--out", arguments.flags.get("out") or "predictions.parquet", allow_remote=False)
    result = predict_to_file(arguments.paths[0], arguments.changes, out, shards="shards" in arguments.flags)
    print(result.text)
    return 0


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("out", "shards!"))
