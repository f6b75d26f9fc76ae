"""Test a checkpoint on the people or recordings that its split holds back. Computed once, then read back.

python jobs/evaluate.py jobs/experiments/fusion.yaml --checkpoint best
"""

from eav_ray.errors import ConfigError
from eav_ray.runtime.cli import Arguments, door, experiment_of
from eav_ray.runtime.evaluate import evaluate_checkpoint


def job(arguments: Arguments) -> None:
    experiment = experiment_of(arguments)
    if not arguments.flags.get("checkpoint"):
        raise ConfigError("name the checkpoint to test with --checkpoint; jobs/train.py and jobs/pull.py print it")
    print(evaluate_checkpoint(experiment, arguments.flags["checkpoint"]).text)


if __name__ == "__main__":
    door(__doc__ or "", job, flags=("checkpoint",))
