"""`eav preprocess`: raw recordings to shards."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer


def preprocess(
    words: ExperimentWords = None,
    frames: Annotated[bool, offer("show a face of each person on the quality page", "--frames")] = False,
) -> None:
    """Clean raw recordings and write their windows to shards.

    What is finished is skipped. It ends with a table and a page on the quality of the signals.

    eav preprocess fusion data.root=/data/EAV
    """
    experiment = load_experiment(words, used_stores=("shards",))

    from eav_ray.data.shards.location import open_shard_store
    from eav_ray.pipelines.preprocess.dataset_check import format_problems
    from eav_ray.pipelines.preprocess.duplicates import summarize_duplicates
    from eav_ray.pipelines.preprocess.preprocess import preprocess as preprocess_dataset
    from eav_ray.pipelines.preprocess.quality_page import write_quality_page
    from eav_ray.words import format_count, format_recordings_or_files

    result = preprocess_dataset(experiment)
    windows = sum(s.rows for s in result.index.shards)
    shards = format_count(len(result.index.shards), "shard")
    print(f"{format_count(windows, 'window')} in {shards}, {result.n_skipped} of them finished earlier")
    set_aside = format_recordings_or_files(len(result.problems))
    print(f"{set_aside} set aside", *format_problems(result.problems), sep="\n")
    if shared := summarize_duplicates(result.duplicates):
        print(shared)
    table, page = write_quality_page(experiment, result, frames=frames)
    print(table)
    print(f"shards: {open_shard_store(experiment)}\nquality: {page}")
