"""`eav compare`: encoders beside each other, under one protocol."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer, split_list


def compare(
    words: ExperimentWords = None,
    encoders: Annotated[str, offer("kinds with commas, or a YAML file with a list", metavar="LIST")] = "",
    seeds: Annotated[int, offer("how many trainings of each, which differ by the seed", metavar="N")] = 1,
    baselines: Annotated[
        str, offer("which of svm,logistic,riemann; none for none", metavar="LIST", show_default="all")
    ] = "",
    reference: Annotated[
        str, offer("the encoder to compare with, one a modality", metavar="NAME", show_default="first")
    ] = "",
) -> int:
    """Compare encoders over all folds of a protocol.

    Each is trained alone on its modality, all by one queue, and compared with the first on the same people, beside
    baselines and what it costs.

    eav compare eegmat --encoders eegformer,bandpower,braindecode:EEGNet
    eav compare fusion --encoders mine.yaml --seeds 3 --baselines none
    """
    from eav_ray.errors import ConfigError

    if not encoders:
        raise ConfigError("name the encoders: --encoders eegformer,bandpower, or --encoders with a YAML file of them")
    experiment = load_experiment(words)

    from eav_ray.pipelines.evaluate.compare import compare_encoders

    result = compare_encoders(
        experiment, encoders, n_seeds=seeds, baselines=split_list(baselines), references=split_list(reference)
    )
    print(result.text)
    return 1 if result.failed else 0
