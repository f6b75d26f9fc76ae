"""`eav evaluate`: test once, audit for leaks, write the page of results."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, find_checkpoint_path, load_experiment, offer


def evaluate(
    words: ExperimentWords = None,
    checkpoint: Annotated[
        str, offer("which model; by default the whole protocol", metavar="CHECKPOINT", show_default=False)
    ] = "",
    out: Annotated[
        str, offer("where the page goes; by default in the results store", metavar="FOLDER", show_default=False)
    ] = "",
    search: Annotated[bool, offer("without --checkpoint: the protocol that was run with --search", "--search")] = False,
    temperature: Annotated[bool, offer("train inner folds, for a temperature and stacking", "--temperature")] = False,
) -> None:
    """Test a checkpoint or a protocol, and write the results page.

    It is audited for leaks first. The folder of the page holds index.html, results.json and model_card.md. A
    protocol is run by `eav protocol`.

    eav evaluate fusion --checkpoint best --out results_page
    eav evaluate fusion split.protocol=within --out results_page
    """
    experiment = load_experiment(words)

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.evaluate.evaluate import evaluate_checkpoint, evaluate_cross_validation

    folder = resolve_user_path("--out", out)
    if checkpoint:
        path = find_checkpoint_path(checkpoint, experiment.store.results)
        print(evaluate_checkpoint(experiment, path, out=folder, fit_temperature=temperature).text)
    else:
        print(evaluate_cross_validation(experiment, searched=search, out=folder, fit_temperature=temperature))
