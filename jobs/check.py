"""Look at a data set before anything is computed: people, recordings per class, and everything that cannot be used.

python jobs/check.py jobs/experiments/fusion.yaml data.root=/data/EAV
"""

from eav_ray.runtime.check import check_dataset, format_dataset_check
from eav_ray.runtime.cli import Arguments, prepare_experiment, run_command


def main(arguments: Arguments) -> int:
    experiment = prepare_experiment(arguments, used_stores=())
    result = check_dataset(experiment)
    print(format_dataset_check(result))
    return 1 if result.problems and experiment.preprocessing.on_bad == "fail" else 0


if __name__ == "__main__":
    run_command(__doc__ or "", main)
