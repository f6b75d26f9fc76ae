"""Look at a data set before anything is computed: people, recordings per class, and everything that cannot be used.

python jobs/check.py jobs/experiments/fusion.yaml data.root=/data/EAV
"""

from eav_ray.runtime.check import check, report
from eav_ray.runtime.cli import Arguments, experiment_of, run_command


def main(arguments: Arguments) -> int:
    experiment = experiment_of(arguments, uses=())
    found = check(experiment)
    print(report(found))
    return 1 if found.problems and experiment.preprocessing.on_bad == "fail" else 0


if __name__ == "__main__":
    run_command(__doc__ or "", main)
