"""`eav demo`: the whole path on generated recordings."""

from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, is_change, load_experiment, offer


def demo(
    words: ExperimentWords = None,
    subjects: Annotated[int, offer("how many people are generated", metavar="N", min=1)] = 9,
    per_class: Annotated[int, offer("recordings of each person and class", metavar="N", min=1)] = 6,
) -> int:
    """Run the whole path on generated recordings.

    It checks, preprocesses, trains, searches, pulls the best checkpoint, tests it once and predicts. The experiment is
    demo where none is named. The best possible accuracy of the recordings is known: they are synthetic, and the numbers
    differ a little between processors.

    eav demo
    eav demo --subjects 9 --per-class 6
    """
    named = any(not is_change(word) for word in words or [])
    experiment = load_experiment([*([] if named else ["demo"]), *(words or [])])

    from eav_ray.distributed.machine_limits import count_usable_cpus
    from eav_ray.pipelines.demo import run_demo

    run_demo(experiment, n_subjects=subjects, per_class=per_class, workers=count_usable_cpus())
    return 0
