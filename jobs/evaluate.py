"""What a checkpoint, or a whole protocol, is worth: tested once, audited for leaks, on one page.

python jobs/evaluate.py eav_ray/experiments/fusion.yaml --checkpoint best --out results_page
python jobs/evaluate.py eav_ray/experiments/fusion.yaml split.protocol=within --out results_page

Without --checkpoint: the protocol that jobs/protocol.py finished, with --search where it was searched. --out: the
folder of index.html, results.json and model_card.md; in the results store if none is named. --temperature: train the
inner folds, to fit a temperature on.
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.config.paths import resolve_user_path
from eav_ray.pipelines.evaluate.evaluate import evaluate_checkpoint, evaluate_cross_validation


def main(arguments: Arguments) -> None:
    experiment, flags = prepare_experiment(arguments), arguments.flags
    out = resolve_user_path("--out", flags.get("out", ""))
    temperature = "temperature" in flags
    if flags.get("checkpoint"):
        print(evaluate_checkpoint(experiment, flags["checkpoint"], out=out, fit_temperature=temperature).text)
    else:
        print(evaluate_cross_validation(experiment, searched="search" in flags, out=out, fit_temperature=temperature))


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("checkpoint", "out", "search!", "temperature!"))
