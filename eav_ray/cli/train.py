"""`eav train`: train one fold."""

import shlex
from typing import Annotated

from eav_ray.cli.arguments import ExperimentWords, load_experiment, offer


def train(
    words: ExperimentWords = None,
    all_subjects: Annotated[bool, offer("train a final model on all subjects", "--all-subjects")] = False,
    search: Annotated[bool, offer("with --all-subjects: the settings that a search found", "--search")] = False,
) -> None:
    """Train one fold of a protocol.

    Each encoder alone and then the fusion (train.mode=staged), or all together (train.mode=end_to_end). The fold's test
    recordings are left alone: `eav evaluate` tests them, once.

    eav train fusion split.index=2 optim.lr=3e-4
    eav train fusion data.modalities=[eeg]

    A final model has no recording left that could test it. What it is expected to be worth is the result of the
    protocol, which comes first: eav protocol, or with --search eav protocol --search or eav search.

    eav train fusion --all-subjects
    """
    if search and not all_subjects:
        from eav_ray.errors import ConfigError

        raise ConfigError("--search goes with --all-subjects; `eav search` trains the best candidate of one fold")
    experiment = load_experiment(words)
    if all_subjects:
        from eav_ray.pipelines.evaluate.final_model import train_final_model

        print(train_final_model(experiment, searched=search).text)
        return

    from eav_ray.pipelines.train.train import train as train_fold

    result = train_fold(experiment)
    print(result.text)
    print(f"checkpoint: {result.path}")
    print(f"next: eav evaluate {shlex.join(words or [])} --checkpoint {result.short_name}")
