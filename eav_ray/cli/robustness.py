"""`eav robustness`: what is left of a checkpoint's accuracy when recordings are corrupted."""

from typing import Annotated

from eav_ray.cli.arguments import CheckpointWords, offer, split_checkpoint_words, split_list


def robustness(
    words: CheckpointWords = None,
    modalities: Annotated[str, offer("which to corrupt, such as eeg,audio", show_default="all")] = "",
    corruptions: Annotated[str, offer("which of them, such as pink,babble", show_default="all")] = "",
    severity_levels: Annotated[int, offer("levels of each corruption", min=1)] = 3,
    all_: Annotated[bool, offer("all recordings of data.root, which may be another data set", "--all")] = False,
    out: Annotated[str, offer("results store", show_default="store.results, or results")] = "",
) -> None:
    """Measure a checkpoint's accuracy on corrupted recordings.

    Its test recordings are corrupted in steps, before preprocessing.

    eav robustness best data.root=/data/EAV
    eav robustness best data.root=/data/EAV --corruptions pink,dropout
    """
    path, changes = split_checkpoint_words(words)

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.evaluate.robustness import RobustnessOptions, run_robustness

    store = str(changes.pop("store.results", "results"))
    folder = resolve_user_path("--out" if out else "store.results", out or store)
    options = RobustnessOptions(split_list(modalities), severity_levels, split_list(corruptions), all_)
    print(run_robustness(path, changes, options, folder).text)
