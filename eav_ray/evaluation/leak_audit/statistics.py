"""The check of what was fitted to data before training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.evaluation.leak_audit.checks import LeakCheck, judge, leave_open
from eav_ray.models.classifier import Classifier
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.statistics import fit_model_statistics

RELATIVE_TOLERANCE = 1e-4  # of statistics that are computed again: relative, float32
STATISTICS = "statistics fitted on training rows only"  # name of a check


def audit_statistics(checkpoint: Checkpoint, fitted_on: Split, windows: WindowCache) -> LeakCheck:
    """What was fitted to data before training is what the training rows alone give."""
    recording_sets = fitted_on.train, (*fitted_on.train, *fitted_on.validation, *fitted_on.test)
    own, on_all_rows = _refit_statistics(checkpoint, windows, recording_sets)
    if not own:
        return leave_open(STATISTICS, "its encoders have no statistics of data")
    differing = sorted(n for n, value in own.items() if not _is_close(checkpoint.weights[n], value))
    problem = f"{', '.join(differing)} differ from what the training rows give" if differing else ""
    n_distinguishing = sum(not _is_close(own[n], on_all_rows[n]) for n in own)
    others = f"{n_distinguishing} of {len(own)} would be others with test rows among them"
    return judge(STATISTICS, problem, f"{', '.join(sorted(own))} are those of the training rows; {others}")


def _refit_statistics(
    checkpoint: Checkpoint, windows: WindowCache, recording_sets: Sequence[tuple[str, ...]]
) -> list[dict[str, Tensor]]:
    """The tensors that are fitted before training, of each of some sets of recordings, the names of the first alone."""
    torch.manual_seed(0)
    model = Classifier(checkpoint.experiment, checkpoint.state.shapes)
    saved_names = model.state_dict().keys()
    buffers = {n: t for n, t in model.named_buffers() if n in saved_names}  # parameters are trained, not fitted
    before, fitted = {n: t.clone() for n, t in buffers.items()}, []
    for recordings in recording_sets:
        fit_model_statistics(model, windows, recordings)
        fitted.append({n: t.clone() for n, t in buffers.items()})
    names = [n for n in buffers if not torch.equal(fitted[0][n], before[n])]
    return [{n: one[n] for n in names} for one in fitted]


def _is_close(a: Tensor, b: Tensor) -> bool:
    tolerance = RELATIVE_TOLERANCE * float(b.abs().max())
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=RELATIVE_TOLERANCE, atol=tolerance)
