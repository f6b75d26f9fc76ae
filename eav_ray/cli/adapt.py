"""`eav adapt`: bring a checkpoint closer to a new person."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, find_checkpoint_path, load_experiment, offer


def adapt(
    checkpoint: Annotated[str, offer("which model is adapted", metavar="CHECKPOINT", show_default=False)],
    subject: Annotated[
        str, offer("a person whom it never saw, such as subject9", metavar="SUBJECT", show_default=False)
    ],
    words: ExperimentWords = None,
    recordings: Annotated[int, offer("how many labelled recordings to train on", metavar="N", min=1)] = 10,
) -> None:
    """Adapt a checkpoint to a person it never saw.

    It is trained on the first few of their labelled recordings. The adapted checkpoint is tested, by `eav
    evaluate`, on the rest of their recordings.

    eav adapt fusion --checkpoint best --subject subject9 --recordings 10
    """
    experiment = load_experiment(words)

    from eav_ray.pipelines.evaluate.adapt import adapt_to_subject

    path = find_checkpoint_path(checkpoint, experiment.store.results)
    print(f"checkpoint: {adapt_to_subject(experiment, path, subject, recordings)}")
