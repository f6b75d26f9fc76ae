"""Search the space of the experiment's `search:` over inner folds, then refit the best candidate on all training rows.

python jobs/search.py eav_ray/experiments/fusion.yaml search.candidates=32 split.index=0
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.pipelines.search.search import search_experiment


def main(arguments: Arguments) -> None:
    experiment = prepare_experiment(arguments)
    best = search_experiment(experiment)
    print(f"best candidate {best.candidate.number}: {best.candidate.changes}, inner score {best.inner_score:.4f}")
    print(f"study: {best.study_name}")
    print(f"checkpoint: {experiment.store.results}/{best.checkpoint}")
    print(f"pull it: python jobs/pull.py {experiment.store.results} --study {best.study_name} --to best")


if __name__ == "__main__":
    run_command(__doc__ or "", main)
