"""`eav protocol`: train and test all folds of a protocol."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer


def protocol(
    words: ExperimentWords = None,
    search: Annotated[
        bool, offer("search every fold first, on inner folds of its own training people", "--search")
    ] = False,
) -> int:
    """Train and test all folds of a protocol.

    One queue of trainings, every fold tested once, one table.

    eav protocol fusion split.protocol=loso
    eav protocol fusion split.protocol=within runtime.groups=4
    eav protocol fusion split.n_folds=5 --search
    """
    experiment = load_experiment(words)

    from eav_ray.pipelines.search.nested_cv import cross_validate_nested
    from eav_ray.pipelines.train.cross_validation import cross_validate

    report = (cross_validate_nested if search else cross_validate)(experiment)
    print(report.text)
    return 1 if report.failed else 0
