"""Published weights are first kept and then trained on; all of it can be stopped and goes on bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eav_ray.config import MODALITIES, Experiment, override
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training.engines.select import make_engine
from eav_ray.training.run_spec import Run, plan_encoder_run, plan_fusion_run, plan_joint_run, plan_runs
from tests.helpers.classifiers import SMALL, make_batch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SPLIT = Split("within", ("subject1/001",), (), ())


def experiment(**changes: Any) -> Experiment:
    return override(Experiment(), SMALL | changes)


def test_frozen_encoders_stay_in_eval_mode_and_keep_every_bit() -> None:
    e = experiment()
    module = Classifier(e, DataShapes(5, 3))
    module.freeze_encoders(True)
    before = {k: v.clone() for k, v in module.encoders.state_dict().items()}
    heads = {k: v.clone() for k, v in module.heads.state_dict().items()}
    engine = make_engine(module, e.optim, replace(e.runtime, engine="torch"), device=torch.device("cpu"))
    for _ in range(3):
        engine.train_step(make_batch(e), 1e-2)
        assert module.training and not any(m.training for m in module.encoders.modules())
    assert all(torch.equal(v, module.encoders.state_dict()[k]) for k, v in before.items())
    assert any(not torch.equal(v, module.heads.state_dict()[k]) for k, v in heads.items())
    assert not any(name.startswith("encoders.") for name in engine.optimizer_state())
    module.freeze_encoders(False)
    assert all(m.training for m in module.encoders.modules())


@pytest.mark.parametrize("name", ["torch", "deepspeed"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_both_engines_scale_the_learning_rate_of_encoders(name: Any, stage: Any) -> None:
    e = experiment(**{"optim.encoder_lr_scale": 0.0, "optim.weight_decay": 0.0})
    module = Classifier(e, DataShapes(5, 3))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    runtime = replace(e.runtime, engine=name, zero_stage=stage)
    engine = make_engine(module, e.optim, runtime, device=torch.device("cpu"))
    engine.train_step(make_batch(e), 1e-2)
    moved = {k for k, v in engine.gather_weights().items() if not torch.equal(v, before[k])}
    engine.close()
    assert moved and not any(k.startswith("encoders.") for k in moved)
    assert any(k.startswith("fusion.") for k in moved) and any(k.startswith("heads.") for k in moved)


@pytest.mark.parametrize("unequal", [False, True])
def test_automatic_class_weights_are_those_of_unequal_classes(unequal: bool) -> None:
    """A training of equal classes is the same as one without weights, and has its key."""
    split = replace(SPLIT, unequal_classes=unequal)
    keys = "train.encoders.audio.class_weights", "optim.class_weights", "train.joint.class_weights"
    auto, weighed, plain = (
        experiment(**dict.fromkeys(keys, chosen), **{"train.mode": "staged_then_joint"})
        for chosen in ("auto", True, False)
    )
    for one, two, three in zip(*(plan_runs(e, split, "data") for e in (auto, weighed, plain)), strict=True):
        is_audio_alone = one.experiment.data.modalities == ("audio",)
        if one.kind != "encoder" or is_audio_alone:
            assert one.weighs_classes == unequal and two.weighs_classes and not three.weighs_classes
            assert one.key == (two.key if unequal else three.key) and two.key != three.key
    with pytest.raises(ConfigError, match=r"optim\.class_weights.*give auto, true or false, not 'on'"):
        experiment(**{"optim.class_weights": "on"})


def test_without_published_weights_there_is_no_frozen_phase(tmp_path: Path) -> None:
    e = experiment(**{"train.encoders.audio.frozen_epochs": 4, "train.encoders.audio.epochs": 3})
    fresh = plan_encoder_run(e, "audio", SPLIT, "data", ())
    assert fresh.epochs == 3 and [p.encoders_frozen for p in fresh.phases] == [False]
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    started = override(e, {"model.audio.weights": str(tmp_path)})
    run = plan_encoder_run(started, "audio", SPLIT, "data", ())
    assert run.epochs == 7
    assert [(p.first_epoch, p.end_epoch, p.encoders_frozen, p.optim.lr) for p in run.phases] == [
        (0, 4, True, 5e-4),
        (4, 7, False, e.train.encoders["audio"].lr),
    ]
    before = run.key
    assert before != fresh.key
    file.write_bytes(b"other weights")
    assert plan_encoder_run(started, "audio", SPLIT, "data", ()).key != before


def test_the_last_part_of_staged_then_joint_starts_from_the_fusion() -> None:
    e = experiment(**{"train.mode": "staged_then_joint", "train.joint.epochs": 2})
    fusion, joint = plan_fusion_run(e, SPLIT, "data", ()), plan_joint_run(e, SPLIT, "data", ())
    assert joint.dependencies == (fusion.key,) and set(fusion.dependencies) == set(fusion.encoder_keys.values())
    assert joint.optim == e.train.joint and joint.epochs == 2
    assert joint.key != Run("joint", e, SPLIT, "data").key


@pytest.mark.parametrize(("modality", "kind"), [*((m, "") for m in MODALITIES), ("eeg", "eav_transformer")])
def test_gradient_checkpointing_changes_no_gradient(modality: str, kind: str) -> None:
    changes: dict[str, Any] = {"data.modalities": [modality]}
    if kind:
        changes["model.eeg"] = {"kind": kind}
    found = []
    for checkpointing in (False, True):
        e = experiment(**changes, **{"runtime.gradient_checkpointing": checkpointing})
        torch.manual_seed(0)
        module = Classifier(e, DataShapes(5, 3)).train()
        made, passes = make_batch(e), []
        norms = [m for m in module.encoders.modules() if isinstance(m, torch.nn.LayerNorm)]
        norms[0].register_forward_hook(lambda *_, p=passes: p.append(1))
        torch.manual_seed(2)
        torch.nn.functional.cross_entropy(module(made.inputs, made.present_BM).logits_BK, made.label_B).backward()
        found.append({n: p.grad for n, p in module.named_parameters()})
        assert len(passes) == 1 + checkpointing
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-7)


def test_spec_augment_hides_a_run_of_bands_in_training_only() -> None:
    from eav_ray.models.encoders.ast import mask_random_span

    torch.manual_seed(0)
    x = torch.ones(200, 30, 20)
    for dim, size in ((1, 30), (2, 20)):
        other = 3 - dim
        lines = mask_random_span(x, 8, dim).amax(other)  # (rows, size)
        assert torch.equal(lines, hide_lines(lines))
        hidden = (lines == 0).sum(1)
        assert hidden.min() == 0 and hidden.max() == 8
        assert set(hidden.tolist()) == set(range(9))
        assert (lines == 0).any(0).sum() == size  # every place is hidden at times
    e = experiment(**{"data.modalities": ["audio"]})
    encoder = Classifier(e, DataShapes(5, 3)).eval().encoders["audio"]
    wave, present = make_batch(e).inputs["audio"], torch.ones(4, dtype=torch.bool)
    assert torch.equal(encoder(wave, present).pooled_BD, encoder(wave, present).pooled_BD)


def hide_lines(lines: torch.Tensor) -> torch.Tensor:
    """What is hidden is one run."""
    edges = (lines[:, 1:] != lines[:, :-1]).sum(1)
    assert (edges <= 2).all()
    return lines
