"""`eav train`: train one fold."""

from eav_ray.cli.arguments import ExperimentWords, load_experiment


def train(words: ExperimentWords = None) -> None:
    """Train one fold of a protocol.

    Each encoder alone and then the fusion (train.mode=staged), or all together (train.mode=end_to_end).

    eav train fusion split.index=2 optim.lr=3e-4
    eav train fusion data.modalities=[eeg]
    """
    experiment = load_experiment(words)

    from eav_ray.pipelines.train.train import train as train_fold

    print(f"checkpoint: {train_fold(experiment)}")
