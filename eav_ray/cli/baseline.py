"""`eav baseline`: classifiers on features, over all folds of a protocol."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer, split_list


def baseline(
    words: ExperimentWords = None,
    kinds: Annotated[str, offer("which of svm,logistic,riemann", metavar="LIST", show_default="all")] = "",
) -> None:
    """Test classifiers on features over all folds of a protocol.

    What an encoder has to beat, on the same splits. One process, no GPU.

    eav baseline fusion split.protocol=loso
    eav baseline eegmat split.access=unlabelled_block --kinds logistic,riemann
    """
    experiment = load_experiment(words)

    from eav_ray.pipelines.evaluate.baseline import run_baselines

    print(run_baselines(experiment, split_list(kinds)).text)
