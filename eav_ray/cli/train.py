"""`eav train`: train one fold."""

import shlex

from eav_ray.cli.arguments import ExperimentWords, load_experiment


def train(words: ExperimentWords = None) -> None:
    """Train one fold of a protocol.

    Each encoder alone and then the fusion (train.mode=staged), or all together (train.mode=end_to_end). The fold's test
    recordings are left alone: `eav evaluate` tests them, once.

    eav train fusion split.index=2 optim.lr=3e-4
    eav train fusion data.modalities=[eeg]
    """
    experiment = load_experiment(words)

    from eav_ray.pipelines.train.train import train as train_fold

    result = train_fold(experiment)
    print(result.text)
    print(f"checkpoint: {result.path}")
    print(f"next: eav evaluate {shlex.join(words or [])} --checkpoint {result.short_name}")
