"""`eav predict`: predict recordings with a checkpoint."""

from typing import Annotated

from eav_ray.cli.arguments import (
    CheckpointWords,
    find_checkpoint_path,
    get_results_store,
    offer,
    split_checkpoint_words,
)


def predict(
    words: CheckpointWords = None,
    out: Annotated[str, offer("the table that is written: .parquet or .csv", metavar="FILE")] = "predictions.parquet",
    shards: Annotated[bool, offer("predict the windows in store.shards instead of raw recordings", "--shards")] = False,
) -> None:
    """Predict recordings with a checkpoint.

    It writes a table with a row a recording, and beside it one with a row a window.

    eav predict best data.root=/data/new_people --out predictions.csv
    eav predict best data.root=/data/EAV store.shards=data/shards --shards
    """
    name, changes = split_checkpoint_words(words)

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.inference.prediction_tables import predict_to_file

    table = resolve_user_path("--out", out, allow_remote=False)
    path = find_checkpoint_path(name, get_results_store(changes))
    print(predict_to_file(path, changes, table, shards=shards).text)
