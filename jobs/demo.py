"""The whole path on planted people: plant, check, preprocess, train, search, refit, pull, test once, predict.

python jobs/demo.py jobs/experiments/demo.yaml --people 9 --per-class 6
"""

import os

from eav_ray.runtime.cli import Arguments, door, experiment_of
from eav_ray.runtime.demo import demo


def job(arguments: Arguments) -> int:
    experiment = experiment_of(arguments)
    people, per_class = arguments.number("people", 9), arguments.number("per-class", 6)
    return 0 if demo(experiment, people=people, per_class=per_class, workers=os.cpu_count() or 1) else 1


if __name__ == "__main__":
    door(__doc__ or "", job, flags=("people", "per-class"))
