"""What fails the audit has no page; synthetic people are never held against published numbers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eav_ray.config import Experiment, override, to_dict
from eav_ray.data.datasets.eav import EAV
from eav_ray.data.io import parquet
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_subject
from eav_ray.errors import DataError
from eav_ray.evaluation.leak_audit.checks import LeakAudit, LeakCheck
from eav_ray.pipelines.evaluate.audited_checkpoint import AuditedCheckpoint, EvaluatedCheckpoint, open_audited
from eav_ray.pipelines.evaluate.page_results import PageInfo
from eav_ray.pipelines.evaluate.page_scores import ClassScores
from eav_ray.pipelines.evaluate.related_results import (
    collect_related,
    collect_searches,
    collect_stored_protocols,
    compare_protocols,
    is_recorded_eav,
)
from eav_ray.pipelines.evaluate.results_page import write_results_page
from eav_ray.storage import Store
from eav_ray.tuning.best import write_best_record
from tests.helpers.audits import make_honest_checkpoint, store_windows, validate_on_test
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint
from tests.helpers.predictions import CLASSES, MODALITIES, draw_predictions

SCORES = ClassScores(MODALITIES, CLASSES)


def test_a_run_that_fails_the_audit_has_no_page(tmp_path: Path) -> None:
    windows = store_windows(tmp_path)
    leaking = validate_on_test(make_honest_checkpoint(windows))
    opened = save_checkpoint(Store(tmp_path / "results"), leaking)
    fold = EvaluatedCheckpoint(1, opened, leaking.split.test, draw_predictions())
    shards = Store(tmp_path / "shards")
    data: Any = SimpleNamespace(windows=windows, index=windows.index, shards=shards, index_file="index.json")
    here = override(Experiment(), {"store.results": str(tmp_path / "results")})
    with pytest.raises(DataError, match=r"fails the leak audit, so there is no page of it: split, recomputed"):
        write_results_page(here, data, [fold], PageInfo("t", "a", "b", "loso"), str(tmp_path / "page"))
    assert not (tmp_path / "page").exists()


def test_the_hash_of_an_audit_is_of_one_checkpoint_even_where_checks_say_the_same(tmp_path: Path) -> None:
    results, found = Store(tmp_path), LeakAudit((LeakCheck("split", "passed", "as planned"),))
    hashes = []
    for weights in (torch.zeros(2), torch.ones(2), torch.zeros(2)):
        opened = save_checkpoint(results, make_checkpoint(Experiment(), key="run", weights={"w": weights}))
        evaluated = EvaluatedCheckpoint(1, opened, ("b/1",), draw_predictions())
        hashes.append(open_audited(evaluated, lambda _: found).audit.sha256)
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("data", "index", "real"),
    [
        ({}, {"is_real": True}, True),
        ({}, {"is_real": False}, False),  # generated in EAV's layout
        ({}, {}, False),  # shards of a version that did not say
        ({"data.labels": "permuted"}, {"is_real": True}, False),
        ({"data.dataset": "recordings_table"}, {"is_real": True}, False),
        ({"data.dataset": "ravdess", "data.modalities": ["audio"]}, {"is_real": True}, False),
    ],
)
def test_only_recorded_eav_is_held_against_the_published_rows(
    data: dict[str, Any], index: dict[str, Any], real: bool
) -> None:
    opened: Any = SimpleNamespace(shards=SimpleNamespace(read_json=lambda name: index), index_file="index.json")
    assert is_recorded_eav(override(Experiment(), data), opened) is real


def test_the_reader_knows_synthetic_subjects_even_among_others(tmp_path: Path) -> None:
    generate_subject(tmp_path, 1, SyntheticSpec(n_subjects=1, per_class=1, video_size=(64, 48), fps=5))
    assert EAV(str(tmp_path)).is_real is False
    (tmp_path / "subject2" / "EEG").mkdir(parents=True)
    assert EAV(str(tmp_path), subjects=["subject2"]).is_real is False
    (tmp_path / "subject1" / "synthetic.json").unlink()
    assert EAV(str(tmp_path)).is_real is True


def test_protocols_of_the_same_experiment_are_found_and_no_others(tmp_path: Path) -> None:
    results, own, table = Store(tmp_path), Experiment(), draw_predictions(subjects=2)
    known = set(table["subject"] + "/" + table["recording"])

    def keep(name: str, changes: dict[str, Any], predicted: Any = table, of: str = "shards") -> None:
        e = override(own, changes)
        trained = save_checkpoint(results, make_checkpoint(e, key=name, data_digest=of))
        files = {
            "experiment.json": json.dumps(to_dict(e)).encode(),
            "predictions.parquet": parquet.encode_dataframe(predicted),
            "folds.json": json.dumps({"format": 2, "folds": [{"fold": 0, "checkpoint": trained.prefix}]}).encode(),
        }
        results.commit(f"protocols/{name}", files)

    keep("a", {"split.protocol": "within"})
    keep("b", {"split.protocol": "paper", "runtime.workers": 1, "store.results": "/elsewhere", "data.root": "/moved"})
    keep("c", {"split.protocol": "loso", "optim.lr": 1e-5})  # another experiment
    keep("d", {"split.protocol": "within", "seed": 7})
    keep("x-nested-e", {"split.protocol": "loso"})
    keep("f", {"split.protocol": "subject_kfold"}, table.assign(subject="stranger"))  # other people
    keep("g", {"split.protocol": "within_validated"}, of="what the folder held before")
    keep("h", {"split.protocol": "subject_kfold", "split.n_folds": 2})  # divided in another way
    keep("i", {"split.protocol": "subject_kfold", "split.n_folds": 2, "seed": 7})
    keep("y-nested-j", {"split.protocol": "loso", "seed": 7, "search.candidates": 3})
    keep("k", {"split.protocol": "within_validated"})
    results.write("protocols/k/predictions.parquet", b"half a fi")
    block = {"split.access": "unlabelled_block"}
    keep("m", {"split.protocol": "within", "model.eeg.subject_normalisation": "standardise"} | block)
    keep("n", {"split.protocol": "within"} | block)
    keep("l", {})
    results.write("protocols/l/experiment.json", b"{")
    data: Any = SimpleNamespace(windows=SimpleNamespace(ids={"id": known}), digest="shards")
    skipped_results: list[str] = []
    found, of_seed = collect_stored_protocols(results, replace(own), data, skipped_results)
    of_2 = f"subject_kfold, of 2, split seed {own.split.seed}"
    access = {"within, unlabelled_block", "within, unlabelled_block without use"}
    assert set(found) == {"within", "paper", "loso, searched", of_2} | access
    assert set(of_seed["within"]) == {own.seed, 7} and set(of_seed["paper"]) == {own.seed}
    assert set(of_seed["loso, searched"]) == {own.seed} and "subject_kfold" not in of_seed
    assert (
        len(skipped_results) == 2
        and "protocols/k" in skipped_results[0]
        and "experiment.json is not JSON" in skipped_results[1]
    )


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"runs": {}', b'{"runs": {"a": "run-1"}, "variants": [{}]}'])
def test_what_other_jobs_left_damaged_is_named_and_takes_no_page_away(tmp_path: Path, content: bytes) -> None:
    results, nothing = Store(tmp_path), SimpleNamespace()
    trained = save_checkpoint(results, make_checkpoint(Experiment(), key="run-1"))
    opened: Any = AuditedCheckpoint(EvaluatedCheckpoint(0, trained, (), draw_predictions()), 0, nothing)  # type: ignore[arg-type]
    for file in ("ablations/a/results.json", "robustness/a/results.json", "comparisons/a/encoders.json"):
        results.write(file, content)
    results.write("searches/s/best.json", b"{")
    write_best_record(results, "t", [{"checkpoint": trained.prefix}])  # no candidates
    skipped_results: list[str] = []
    sections, found = collect_related(results, [opened], skipped_results)
    assert sections == [] and found == {"encoders": None, "ablation": None, "robustness": None}
    assert len(skipped_results) == 3
    for folder, line in zip(("comparisons", "ablations", "robustness"), skipped_results, strict=True):
        assert f"{folder}/a" in line
    assert collect_searches(results, [opened], Experiment(), SCORES, skipped_results) == ([], [])
    assert len(skipped_results) == 5 and "searches/s" in skipped_results[3] and "searches/t" in skipped_results[4]


def test_a_fold_of_paper_is_held_against_the_reference_as_paper(tmp_path: Path) -> None:
    ours = draw_predictions(subjects=1).assign(subject="subject4")
    shards: Any = SimpleNamespace(read_json=lambda name: {"is_real": True})
    windows = SimpleNamespace(ids={"id": set()})
    data: Any = SimpleNamespace(windows=windows, digest="", shards=shards, index_file="index.json")
    for protocol, other in (("paper, fold 3 alone", False), ("loso, fold 3 alone", True)):
        found = compare_protocols(Experiment(), Store(tmp_path), data, protocol, ours, SCORES, [])["reference"]
        assert ("another protocol" in found["note"]) is other
    pair = ours.drop(columns=[c for c in ours if c.startswith("eeg.") or c.endswith(".eeg")])
    scores = ClassScores(["audio", "video"], CLASSES)
    rows = compare_protocols(Experiment(), Store(tmp_path), data, "paper, fold 3 alone", pair, scores, [])["reference"]
    assert [row["ours"] for row in rows["rows"]] == ["audio", "video"]  # the published fusion reads EEG too
