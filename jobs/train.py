"""Train one fold: each encoder alone and then the fusion (train.mode=staged), or all together (end_to_end).

python jobs/train.py jobs/experiments/fusion.yaml optim.lr=3e-4 fold.index=2
python jobs/train.py jobs/experiments/fusion.yaml data.modalities=[eeg]
"""

from eav_ray.runtime.cli import Arguments, door, experiment_of
from eav_ray.runtime.train import train


def job(arguments: Arguments) -> None:
    print(f"checkpoint: {train(experiment_of(arguments))}")


if __name__ == "__main__":
    door(__doc__ or "", job)
