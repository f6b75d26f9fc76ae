"""The whole path on synthetic people: generate, check, preprocess, train, search, refit, pull, test once, predict.

python jobs/demo.py eav_ray/experiments/demo.yaml --subjects 9 --per-class 6
"""

import os

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.pipelines.demo import run_demo


def main(arguments: Arguments) -> int:
    experiment = prepare_experiment(arguments)
    n_subjects, per_class = arguments.parse_count("subjects", 9), arguments.parse_count("per-class", 6)
    return 0 if run_demo(experiment, n_subjects=n_subjects, per_class=per_class, workers=os.cpu_count() or 1) else 1


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("subjects", "per-class"))
