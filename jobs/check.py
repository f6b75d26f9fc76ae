"""Look at a data set before anything is computed: people, recordings per class, and everything that cannot be used.

python jobs/check.py eav_ray/experiments/fusion.yaml data.root=/data/EAV
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check


def main(arguments: Arguments) -> int:
    experiment = prepare_experiment(arguments, used_stores=())
    result = check_dataset(experiment)
    print(format_dataset_check(result))
    return 1 if result.problems and experiment.preprocessing.on_bad == "fail" else 0


if __name__ == "__main__":
    run_command(__doc__ or "", main)
