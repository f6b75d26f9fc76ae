"""The whole path on planted people: plant, check, preprocess, train, search, refit, pull, test once, predict.

python jobs/demo.py jobs/experiments/demo.yaml --people 9 --per-class 6
"""

import os

from eav_ray.runtime.cli import Arguments, experiment_of, run_command
from eav_ray.runtime.demo import demo


def main(arguments: Arguments) -> int:
    experiment = experiment_of(arguments)
    n_subjects, per_class = arguments.number("people", 9), arguments.number("per-class", 6)
    return 0 if demo(experiment, n_subjects=n_subjects, per_class=per_class, workers=os.cpu_count() or 1) else 1


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("people", "per-class"))
