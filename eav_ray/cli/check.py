"""`eav check`: look at a data set before anything is computed."""

from eav_ray.cli.arguments import ExperimentWords, load_experiment


def check(words: ExperimentWords = None) -> int:
    """List what a data set holds, and what cannot be used.

    Before anything is computed: people, recordings per class, and why a recording or file cannot be used.

    eav check fusion data.root=/data/EAV
    """
    experiment = load_experiment(words, used_stores=())

    from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check

    result = check_dataset(experiment)
    print(format_dataset_check(result))
    return 1 if result.problems and experiment.preprocessing.on_bad == "fail" else 0
