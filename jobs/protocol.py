"""Train and test all folds of the experiment's protocol: one queue of trainings, every fold tested once, one table.

python jobs/protocol.py eav_ray/experiments/fusion.yaml split.protocol=loso
python jobs/protocol.py eav_ray/experiments/fusion.yaml split.protocol=within data.modalities=[eeg] runtime.groups=4
python jobs/protocol.py eav_ray/experiments/fusion.yaml split.n_folds=5 --search

--search: each fold is searched first, as jobs/search.py does, on inner folds of its own training people.
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.pipelines.search.nested_cv import cross_validate_nested
from eav_ray.pipelines.train.cross_validation import cross_validate


def main(arguments: Arguments) -> int:
    run = cross_validate_nested if "search" in arguments.flags else cross_validate
    report = run(prepare_experiment(arguments))
    print(report.text)
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("search!",))
