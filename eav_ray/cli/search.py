"""`eav search`: search hyperparameters on inner folds."""

from eav_ray.cli.arguments import ExperimentWords, load_experiment


def search(words: ExperimentWords = None) -> None:
    """Search hyperparameters on inner folds.

    Candidates are drawn from search.space; the best one is trained again on all training recordings.

    eav search fusion search.candidates=32 split.index=0
    """
    experiment = load_experiment(words)

    from eav_ray.pipelines.inference.checkpoint_names import shorten_key
    from eav_ray.pipelines.search.search import search_experiment

    best = search_experiment(experiment)
    print(f"best candidate {best.candidate.number}: {best.candidate.changes}, inner score {best.inner_score:.4f}")
    print(f"study: {best.study_name}")
    print(f"checkpoint: {best.path}")
    print(f"pull it: eav pull {experiment.store.results} {shorten_key(best.study_name)} --to best")
