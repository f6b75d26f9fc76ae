"""Train and test all folds of the experiment's protocol: one queue of trainings, every fold tested once, one table.

python jobs/protocol.py jobs/experiments/fusion.yaml fold.protocol=loso
python jobs/protocol.py jobs/experiments/fusion.yaml fold.protocol=within data.modalities=[eeg] runtime.groups=4
python jobs/protocol.py jobs/experiments/fusion.yaml fold.of=5 --search

--search: each fold is searched first, as jobs/tune.py does, on inner folds of its own training people.
"""

from eav_ray.runtime.cli import Arguments, prepare_experiment, run_command
from eav_ray.runtime.nested import cross_validate_nested
from eav_ray.runtime.protocol import cross_validate


def main(arguments: Arguments) -> int:
    run = cross_validate_nested if "search" in arguments.flags else cross_validate
    report = run(prepare_experiment(arguments))
    print(report.text)
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("search!",))
