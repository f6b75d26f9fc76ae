"""Train and test all folds of the experiment's protocol: one queue of trainings, every fold tested once, one table.

python jobs/protocol.py jobs/experiments/fusion.yaml fold.protocol=loso
python jobs/protocol.py jobs/experiments/fusion.yaml fold.protocol=within data.modalities=[eeg] runtime.groups=4
"""

from eav_ray.runtime.cli import Arguments, door, experiment_of
from eav_ray.runtime.protocol import run_protocol


def job(arguments: Arguments) -> int:
    done = run_protocol(experiment_of(arguments))
    print(done.text)
    return 1 if done.failed else 0


if __name__ == "__main__":
    door(__doc__ or "", job)
