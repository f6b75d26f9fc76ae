"""Train and test variants of an experiment over all folds of its protocol: what each part is worth, and what it costs.

python jobs/ablate.py eav_ray/experiments/fusion.yaml split.protocol=loso
python jobs/ablate.py eav_ray/experiments/fusion.yaml --parts subsets,kinds
python jobs/ablate.py eav_ray/experiments/fusion.yaml --parts sizes --sizes handcrafted,quarter,half

--parts: any of subsets (of modalities, trained alone and masked), kinds (of fusion), dropout (of modalities), positions
(time encodings of tokens), sizes; all, if it is not given.
--sizes: any of handcrafted (band power and MFCC), quarter, half, double; handcrafted,half if it is not given.
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.evaluation.ablation_variants import ABLATION_PARTS
from eav_ray.pipelines.evaluate.ablation import run_ablation


def main(arguments: Arguments) -> int:
    experiment = prepare_experiment(arguments)
    parts, sizes = (
        arguments.flags.get(f, d).split(",")
        for f, d in (("parts", ",".join(ABLATION_PARTS)), ("sizes", "handcrafted,half"))
    )
    result = run_ablation(experiment, parts, sizes)
    print(result.text)
    return 1 if result.failed else 0


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("parts", "sizes"))
