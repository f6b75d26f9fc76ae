"""A checkpoint is whole or does not exist; what is damaged is skipped, and nothing in it is ever executed."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eav_ray.config import Experiment, override
from eav_ray.data.splits import Split
from eav_ray.errors import DataError
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import COMMIT, Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.run_spec import SELECTION_METRIC, Position

KEY = "run"
FIRST, SECOND, THIRD = (
    "a0000-aaaaaaaa",
    "a0001-00000000",
    "a0002-77777777",
)  # attempts, as `make_attempt_name` names them
WHOLE = ckpt.Checkpoint(
    experiment=override(Experiment(), {"optim.lr": 1e-3, "data.modalities": ["eeg"]}),
    split=Split("loso", ("a/1", "b/1"), ("c/1",), ("d/1",)),
    classes=("calm", "sad"),
    shapes=DataShapes(3, 2),
    weights={"w": torch.randn(2, 3), "normalise.mean": torch.zeros(3), "n": torch.tensor(3.0)},
    optimizer_state={"w.exp_avg": torch.randn(2, 3), "w.exp_avg_sq": torch.rand(2, 3), "step": torch.tensor(7.0)},
    position=Position(2, 3),
    finished=False,
    metrics={"train_loss": 0.5},
    encoder_keys={"eeg": "key"},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def same(one: ckpt.Checkpoint, other: ckpt.Checkpoint) -> bool:
    tensors = ((one.weights, other.weights), (one.optimizer_state, other.optimizer_state))
    equal = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in tensors)
    return equal and replace(one, weights={}, optimizer_state={}) == replace(other, weights={}, optimizer_state={})


def at(epoch: int, step: int = 0, *, finished: bool = False) -> ckpt.Checkpoint:
    moments = {} if finished else WHOLE.optimizer_state
    return replace(WHOLE, position=Position(epoch, step), finished=finished, optimizer_state=moments)


@pytest.mark.parametrize("made", [WHOLE, at(4, finished=True)], ids=["unfinished", "finished"])
def test_what_is_saved_is_loaded(store: Store, made: ckpt.Checkpoint) -> None:
    prefix = ckpt.write_checkpoint(store, KEY, FIRST, made)
    assert same(ckpt.read_checkpoint(store, prefix), made)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(store: Store) -> None:
    prefix = ckpt.write_checkpoint(store, KEY, FIRST, WHOLE)
    names = {Path(n).name for n in store.list_files(prefix)}
    assert {n for n in names if not n.endswith(".json")} == {"model.safetensors", "optimizer.safetensors", COMMIT}


def test_the_latest_is_the_furthest_and_not_the_last_written(store: Store) -> None:
    assert ckpt.find_latest_checkpoint(store, KEY) == (None, [])
    for made in (at(1), at(10), at(2, 9)):
        ckpt.write_checkpoint(store, KEY, FIRST, made)
    found, damaged = ckpt.find_latest_checkpoint(store, KEY)
    assert found and found[1].position == Position(10, 0) and damaged == []
    assert [p for _, p, _ in ckpt.list_checkpoints(store, KEY)] == [Position(10, 0), Position(2, 9), Position(1, 0)]
    assert ckpt.find_latest_checkpoint(store, "ru") == (None, [])


def test_an_attempt_that_was_given_up_and_writes_on_cannot_win(store: Store) -> None:
    """On an object store, which has no locks, a process may live on that was taken for dead."""
    ckpt.write_checkpoint(store, KEY, FIRST, at(1))
    second = ckpt.write_checkpoint(store, KEY, SECOND, at(1, 5))
    late = ckpt.write_checkpoint(store, KEY, FIRST, at(4, finished=True))
    ckpt.prune_checkpoints(store, KEY, FIRST, keep=1)
    found, _ = ckpt.find_latest_checkpoint(store, KEY)
    assert found and found[0] == second and not found[1].finished
    assert [prefix for _, _, prefix in ckpt.list_checkpoints(store, KEY)] == [second, late]
    ckpt.prune_checkpoints(store, KEY, SECOND, keep=1)
    assert [prefix for _, _, prefix in ckpt.list_checkpoints(store, KEY)] == [second]


def test_two_processes_that_start_at_once_write_different_folders(store: Store) -> None:
    ckpt.write_checkpoint(store, KEY, FIRST, at(1))
    one, other = ckpt.make_attempt_name(store, KEY), ckpt.make_attempt_name(store, KEY)
    assert one != other and one.startswith("a0001-") and other.startswith("a0001-") and min(one, other) > FIRST
    prefixes = {ckpt.write_checkpoint(store, KEY, attempt, at(2)) for attempt in (one, other)}
    assert len(prefixes) == 2 and ckpt.make_attempt_name(store, KEY) > max(one, other)
    assert prefixes < {prefix for _, _, prefix in ckpt.list_checkpoints(store, KEY)}


def test_a_checkpoint_of_an_earlier_version_is_found(store: Store) -> None:
    """Attempts were numbers alone."""
    prefix = ckpt.write_checkpoint(store, KEY, "a0000", at(1))
    found, _ = ckpt.find_latest_checkpoint(store, KEY)
    assert found and found[0] == prefix and ckpt.make_attempt_name(store, KEY).startswith("a0001-")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "experiment.json", COMMIT]
)
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store: Store, name: str, harm: str) -> None:
    before, last = ckpt.write_checkpoint(store, KEY, FIRST, at(1)), ckpt.write_checkpoint(store, KEY, FIRST, at(2))
    path = Path(store.resolve_path(f"{last}/{name}"))
    data = bytearray(path.read_bytes())
    match harm:
        case "cut":
            path.write_bytes(data[:-3])
        case "flip":
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
        case "gone":
            path.unlink()
    found, damaged = ckpt.find_latest_checkpoint(store, KEY)
    assert found and found[0] == before and same(found[1], at(1))
    if (name, harm) == (COMMIT, "gone"):  # never finished, so there is nothing to say
        assert damaged == []
    else:
        assert len(damaged) == 1 and last in damaged[0]


def test_an_attempt_that_was_killed_while_writing_does_not_count(store: Store) -> None:
    prefix = ckpt.make_checkpoint_prefix(KEY, FIRST, Position(5, 0))
    store.write(f"{prefix}/model.safetensors", b"half")
    assert ckpt.find_latest_checkpoint(store, KEY) == (None, [])
    assert ckpt.make_attempt_name(store, KEY).startswith("a0001-")


class Malicious:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "experiment.json"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_malicious_pickle_is_refused_and_not_executed(store: Store, name: str, zipped: bool, tmp_path: Path) -> None:
    proof, made = tmp_path / "executed", tmp_path / "made"
    if zipped:
        torch.save({"w": Malicious(proof)}, made)
    else:
        made.write_bytes(pickle.dumps(Malicious(proof)))
    torch.load(made, weights_only=False) if zipped else pickle.loads(made.read_bytes())
    assert proof.exists()  # it is malicious
    proof.unlink()
    prefix = ckpt.write_checkpoint(store, KEY, FIRST, WHOLE)
    files = store.read_committed(prefix) | {name: made.read_bytes()}
    store.commit(prefix, files)  # with the right hash: whoever can write files can write COMMIT
    with pytest.raises(DataError, match="not a checkpoint of this program"):
        ckpt.read_checkpoint(store, prefix)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "split.json", "metrics.json", "experiment.json"])
@pytest.mark.parametrize("content", [b"[]", b"null", b'{"a": 1}', b"", None])
def test_a_commit_of_other_files_is_not_a_checkpoint(store: Store, name: str, content: bytes | None) -> None:
    files = store.read_committed(ckpt.write_checkpoint(store, KEY, FIRST, WHOLE))
    files = {k: v for k, v in files.items() if k != name} | ({} if content is None else {name: content})
    if (name, content) == ("metrics.json", b'{"a": 1}'):
        return
    if (name, content) == ("metrics.json", b"[]"):
        assert ckpt.parse_checkpoint(files, name="x").metrics == {}
        return
    with pytest.raises(DataError, match="x is not a checkpoint"):
        ckpt.parse_checkpoint(files, name="x")


def test_pruning_keeps_the_newest_and_the_best_by_validation(store: Store) -> None:
    scores = {1: 0.5, 2: 0.7, 3: 0.7, 4: float("nan"), 5: 0.6, 6: None, 7: 0.1}
    for epoch, score in scores.items():
        metrics = {} if score is None else {SELECTION_METRIC: score}
        ckpt.write_checkpoint(store, KEY, FIRST, replace(at(epoch), metrics=metrics))
        ckpt.prune_checkpoints(store, KEY, FIRST, keep=2)
    assert [p.epoch for _, p, _ in ckpt.list_checkpoints(store, KEY)] == [7, 6, 3]


def test_pruning_sweeps_what_dead_attempts_were_writing_but_not_what_may_still_be_written(store: Store) -> None:
    first = ckpt.write_checkpoint(store, KEY, FIRST, at(1))
    halves = {attempt: f"runs/{KEY}/{attempt}/e0009-s000000/model.safetensors" for attempt in (FIRST, SECOND, THIRD)}
    for name in halves.values():
        store.write(name, b"half")
    second = ckpt.write_checkpoint(store, KEY, SECOND, at(2))
    ckpt.prune_checkpoints(store, KEY, SECOND, keep=2)
    assert (
        store.exists(halves[FIRST]) and ckpt.find_latest_checkpoint(store, KEY)[0]
    )  # where something is left, nothing is swept
    ckpt.prune_checkpoints(store, KEY, SECOND, keep=1)
    assert not store.list_files(f"runs/{KEY}/{FIRST}") and not store.is_committed(first)
    assert store.is_committed(second) and store.exists(halves[SECOND]) and store.exists(halves[THIRD])


def test_pruning_keeps_the_last_of_all_attempts_and_leaves_other_runs(store: Store) -> None:
    prefixes = [
        ckpt.write_checkpoint(store, KEY, attempt, at(epoch))
        for attempt, epoch in ((FIRST, 1), (FIRST, 2), (SECOND, 3))
    ]
    other = ckpt.write_checkpoint(store, "other", FIRST, at(1))
    ckpt.prune_checkpoints(store, KEY, THIRD, keep=1)
    assert [prefix for _, _, prefix in ckpt.list_checkpoints(store, KEY)] == [prefixes[2]]
    assert same(ckpt.read_checkpoint(store, prefixes[2]), at(3))
    assert same(ckpt.read_checkpoint(store, other), at(1))
