"""Bring a checkpoint closer to a person it never saw, by the first few of their labelled recordings.

python jobs/adapt.py eav_ray/experiments/fusion.yaml --checkpoint best --subject subject9 --recordings 10
python jobs/evaluate.py  eav_ray/experiments/fusion.yaml --checkpoint results/runs/joint-...
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.config.paths import resolve_user_path
from eav_ray.errors import ConfigError
from eav_ray.pipelines.evaluate.adapt import adapt_to_subject


def main(arguments: Arguments) -> None:
    experiment = prepare_experiment(arguments)
    for flag in ("checkpoint", "subject"):
        if not arguments.flags.get(flag):
            raise ConfigError("name the checkpoint and the person: --checkpoint best --subject subject9")
    path = resolve_user_path("--checkpoint", arguments.flags["checkpoint"])
    adapted = adapt_to_subject(experiment, path, arguments.flags["subject"], arguments.parse_count("recordings", 10))
    print(f"checkpoint: {adapted}")


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("checkpoint", "subject", "recordings"))
