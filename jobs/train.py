"""Train one fold: each encoder alone and then the fusion (train.mode=staged), or all together (end_to_end).

python jobs/train.py jobs/experiments/fusion.yaml optim.lr=3e-4 fold.index=2
python jobs/train.py jobs/experiments/fusion.yaml data.modalities=[eeg]
"""

from eav_ray.runtime.cli import Arguments, prepare_experiment, run_command
from eav_ray.runtime.train import train


def main(arguments: Arguments) -> None:
    print(f"checkpoint: {train(prepare_experiment(arguments))}")


if __name__ == "__main__":
    run_command(__doc__ or "", main)
