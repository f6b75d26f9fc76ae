"""`eav robustness`: what is left of a checkpoint's accuracy when recordings are corrupted."""

from typing import Annotated

from eav_ray.cli.arguments import (
    CheckpointWords,
    find_checkpoint_path,
    get_results_store,
    offer,
    split_checkpoint_words,
    split_list,
)


def robustness(
    words: CheckpointWords = None,
    modalities: Annotated[str, offer("which to corrupt, such as eeg,audio", metavar="LIST", show_default="all")] = "",
    corruptions: Annotated[str, offer("which of them, such as pink,babble", metavar="LIST", show_default="all")] = "",
    severity_levels: Annotated[int, offer("levels of each corruption", metavar="N", min=1)] = 3,
    all_: Annotated[bool, offer("all recordings of data.root, which may be another data set", "--all")] = False,
    out: Annotated[str, offer("results store", metavar="STORE", show_default="store.results, or results")] = "",
) -> None:
    """Measure a checkpoint's accuracy on corrupted recordings.

    Its test recordings are corrupted in steps, before preprocessing.

    eav robustness best data.root=/data/EAV
    eav robustness best data.root=/data/EAV --corruptions pink,dropout
    """
    name, changes = split_checkpoint_words(words)

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.evaluate.robustness import RobustnessOptions, run_robustness

    store = get_results_store(changes)
    changes.pop("store.results", None)
    folder = resolve_user_path("--out" if out else "store.results", out or store)
    options = RobustnessOptions(split_list(modalities), severity_levels, split_list(corruptions), all_)
    path = find_checkpoint_path(name, store)
    print(run_robustness(path, changes, options, folder).text)
