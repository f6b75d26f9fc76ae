"""`eav ablate`: what each part of an experiment is worth."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer, split_list


def ablate(
    words: ExperimentWords = None,
    parts: Annotated[
        str, offer("any of subsets, kinds, dropout, positions, sizes", metavar="LIST", show_default="all")
    ] = "",
    sizes: Annotated[str, offer("any of handcrafted, quarter, half, double", metavar="LIST")] = "handcrafted,half",
) -> int:
    """Measure what each part of an experiment is worth.

    Variants are trained and tested over all folds of its protocol. Parts are subsets of modalities (trained alone,
    and masked), kinds of fusion, dropout of modalities, positions (time encodings of tokens) and sizes of the encoders.

    eav ablate fusion split.protocol=loso
    eav ablate fusion --parts subsets,kinds
    eav ablate fusion --parts sizes --sizes handcrafted,half
    """
    experiment = load_experiment(words)

    from eav_ray.evaluation.ablation_variants import ABLATION_PARTS
    from eav_ray.pipelines.evaluate.ablation import run_ablation

    result = run_ablation(experiment, split_list(parts) or ABLATION_PARTS, split_list(sizes))
    print(result.text)
    return 1 if result.failed else 0
