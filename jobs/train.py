"""Train one fold: each encoder alone and then the fusion (train.mode=staged), or all together (end_to_end).

python jobs/train.py eav_ray/experiments/fusion.yaml optim.lr=3e-4 split.index=2
python jobs/train.py eav_ray/experiments/fusion.yaml data.modalities=[eeg]
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.experiment_argument import prepare_experiment
from eav_ray.cli.run_command import run_command
from eav_ray.pipelines.train.train import train


def main(arguments: Arguments) -> None:
    print(f"checkpoint: {train(prepare_experiment(arguments))}")


if __name__ == "__main__":
    run_command(__doc__ or "", main)
