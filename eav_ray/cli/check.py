"""`eav check`: look at a data set before anything is computed."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer


def check(
    words: ExperimentWords = None,
    deep: Annotated[bool, offer("decode all recordings, and name those that are nearly equal", "--deep")] = False,
) -> int:
    """List what a data set holds, and what cannot be used.

    Before anything is computed: people, recordings per class or how numbers are spread, why a recording or file
    cannot be used, and rows that name one signal.

    eav check fusion data.root=/data/EAV
    eav check fusion data.root=/data/EAV --deep
    """
    experiment = load_experiment(words, used_stores=())

    from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check

    result = check_dataset(experiment, deep=deep)
    print(format_dataset_check(result))
    return 1 if result.problems and experiment.preprocessing.on_bad == "fail" else 0
