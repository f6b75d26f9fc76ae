"""Where weights and values came from is named, or left open; a search that saw test rows is found."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eav_ray.config import override, to_dict
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.evaluation.leak_audit.origins import SearchRecord, audit_pretrained_weights, audit_searched_values
from eav_ray.pipelines.evaluate.search_records import read_search_records
from eav_ray.storage import Store, hash_content
from eav_ray.tuning.best import write_best_record
from tests.helpers.audits import make_experiment, make_honest_checkpoint, store_windows
from tests.helpers.checkpoints import change_state


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return store_windows(tmp_path_factory.mktemp("origins"))


def test_fresh_weights_pass_and_others_are_named_and_left_open(tmp_path: Path) -> None:
    e = make_experiment()
    assert audit_pretrained_weights(e).outcome == "passed"
    pretrained = override(e, {"model.audio.kind": "ast", "model.audio.weights": "someone/ast"})
    found = audit_pretrained_weights(pretrained)
    assert found.outcome == "cannot tell" and "audio starts from someone/ast (of a revision" in found.detail
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    local = audit_pretrained_weights(override(pretrained, {"model.audio.weights": str(tmp_path)}))
    assert local.outcome == "cannot tell" and hash_content(str(tmp_path))[:16] in local.detail


def test_an_encoder_that_is_not_used_brings_no_weights() -> None:
    e = make_experiment()
    pretrained = override(e, {"model.audio.kind": "ast", "model.audio.weights": "someone/ast"})
    assert audit_pretrained_weights(override(pretrained, {"data.modalities": ["eeg"]})).outcome == "passed"


CHANGES = {"optim.lr": 0.25}


def test_what_a_search_saw_decides(windows: WindowCache) -> None:
    one = make_honest_checkpoint(windows)
    split, tested = one.split, one.split.test[0]

    def judge(*searches: SearchRecord, key: str = "run") -> tuple[str, str]:
        found = audit_searched_values(override(one.experiment, CHANGES), key, split, searches)
        return found.outcome, found.detail

    sound = SearchRecord("s", {"run": CHANGES}, frozenset(split.train))
    outcome, detail = judge(sound)
    assert outcome == "passed" and "search s chose optim.lr=0.25, on inner folds of 24 recordings" in detail
    outcome, detail = judge(replace(sound, seen=frozenset((*split.train, tested))))
    assert outcome == "failed" and tested in detail and "optim.lr=0.25" in detail
    outcome, detail = judge(replace(sound, seen=None))
    assert outcome == "cannot tell" and "cannot be made out" in detail
    # Nothing names this run; its values are those of a search that saw what it is tested on.
    outcome, detail = judge(replace(sound, seen=frozenset((*split.train, tested))), key="another")
    assert outcome == "cannot tell" and "which saw 1 of the tested recordings" in detail
    outcome, detail = judge(replace(sound, checkpoints={"run": {"optim.lr": 0.5}}, seen=frozenset([tested])), key="b")
    assert outcome == "cannot tell" and "none of 1 search in" in detail
    assert judge()[0] == "cannot tell"
    assert audit_searched_values(one.experiment, "run", split, None).outcome == "cannot tell"


def test_inner_folds_are_made_again_of_what_lies_beside_a_search(windows: WindowCache, tmp_path: Path) -> None:
    results, data = Store(tmp_path), SimpleNamespace(windows=windows)
    one = change_state(make_honest_checkpoint(windows), key="run-1")
    e = one.experiment

    def keep(study: str, changes: dict[str, Any], **record: Any) -> None:
        results.write_json(f"searches/{study}/experiment.json", to_dict(override(e, changes)))
        write_best_record(results, study, [{"checkpoint": "runs/run-1/a", "changes": CHANGES} | record, {}])

    keep("own", {})
    keep("of-another-fold", {"split.index": 2}, checkpoint="runs/run-2/a")
    keep("elsewhere", {"data.dataset": "ravdess", "data.modalities": ["audio"]})
    keep("gone", {"data.subjects": ["p9"]}, checkpoint="runs/run-3/a")
    write_best_record(results, "bare", [{"checkpoint": "runs/run-4/a"}])
    results.write("searches/damaged/best.json", b"{")
    results.write_json("searches/unfinished/experiment.json", to_dict(e))
    opened: Any = data
    found = {record.study: record for record in read_search_records(results, opened, e.data.dataset)}
    assert set(found) == {"own", "of-another-fold", "gone", "bare"}
    assert found["own"].seen == frozenset(one.split.train) and found["own"].checkpoints["run-1"] == CHANGES
    other = found["of-another-fold"].seen
    assert other is not None and set(one.split.test) <= other
    assert found["gone"].seen is None and found["bare"].seen is None

    def judge(*names: str) -> str:
        records = [found[name] for name in names]
        return audit_searched_values(override(e, CHANGES), "run-1", one.split, records).outcome

    assert judge("own", "of-another-fold") == "passed" and judge("of-another-fold") == "cannot tell"
    leaked = replace(found["of-another-fold"], checkpoints={"run-1": CHANGES})  # a search of another fold chose them
    assert audit_searched_values(e, "run-1", one.split, [leaked]).outcome == "failed"
