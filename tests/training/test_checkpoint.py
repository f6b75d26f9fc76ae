"""A checkpoint is whole or does not exist; what is damaged is skipped, and nothing in it is ever executed."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eav_ray.config import Experiment, override
from eav_ray.data.splits import Split
from eav_ray.errors import DataError
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import COMMIT, Store, sha256
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint_files import Checkpoint, CheckpointState, parse_checkpoint
from eav_ray.training.run_spec import SELECTION_METRIC, Position
from tests.helpers.checkpoints import change_state
from tests.helpers.reliability import CHAOS

KEY = "run"
FIRST, SECOND, THIRD = (
    "a0000-aaaaaaaa",
    "a0001-00000000",
    "a0002-77777777",
)  # attempts, as `make_attempt_name` names them
WHOLE = Checkpoint(
    state=CheckpointState(KEY, Position(2, 3), False, ("calm", "sad"), DataShapes(3, 2), "shards", {"eeg": "key"}),
    experiment=override(Experiment(), {"optim.lr": 1e-3, "data.modalities": ["eeg"]}),
    split=Split("loso", ("a/1", "b/1"), ("c/1",), ("d/1",)),
    metrics={"train_loss": 0.5},
    weights={"w": torch.randn(2, 3), "normalise.mean": torch.zeros(3), "n": torch.tensor(3.0)},
    optimizer_state={"w.exp_avg": torch.randn(2, 3), "w.exp_avg_sq": torch.rand(2, 3), "step": torch.tensor(7.0)},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    tensors = ((one.weights, other.weights), (one.optimizer_state, other.optimizer_state))
    equal = all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in tensors)
    return equal and replace(one, weights={}, optimizer_state={}) == replace(other, weights={}, optimizer_state={})


def at(epoch: int, step: int = 0, *, finished: bool = False, key: str = KEY) -> Checkpoint:
    made = change_state(WHOLE, position=Position(epoch, step), finished=finished, key=key)
    return replace(made, optimizer_state={}) if finished else made


def write(store: Store, attempt: str, checkpoint: Checkpoint) -> str:
    return ckpt.write_checkpoint(store, attempt, checkpoint).prefix


def prefixes(store: Store) -> list[str]:
    return [checkpoint.prefix for _, _, checkpoint in ckpt.list_checkpoints(store, KEY)]


@pytest.mark.parametrize("made", [WHOLE, at(4, finished=True)], ids=["unfinished", "finished"])
def test_what_is_written_is_read(store: Store, made: Checkpoint) -> None:
    opened = ckpt.write_checkpoint(store, FIRST, made)
    assert same(opened.load(), made)
    opened = ckpt.open_checkpoint(opened.path)
    parts = (opened.state, opened.experiment, opened.split, opened.metrics, opened.weights, opened.optimizer_state)
    assert same(Checkpoint(*parts), made) and opened.key == KEY
    assert opened.commit_sha256 == sha256(opened.store.read(f"{opened.prefix}/{COMMIT}"))


def test_an_opened_checkpoint_reads_what_is_asked_for_and_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ckpt.write_checkpoint(store, FIRST, WHOLE)
    read = watch_reads(monkeypatch)
    opened = ckpt.open_checkpoint(opened.path)
    assert read == []
    assert opened.key == KEY and opened.state.finished is False
    assert read == [COMMIT, "state.json"]
    assert opened.split == WHOLE.split and opened.split == WHOLE.split and opened.experiment == WHOLE.experiment
    assert read == [COMMIT, "state.json", "split.json", "experiment.json"]
    assert opened.weights.keys() == WHOLE.weights.keys()
    assert read[4:] == ["model.safetensors"]


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that any store reads from here on."""
    read: list[str] = []
    original = Store.read

    def record(store: Store, name: str) -> bytes:
        read.append(name.rsplit("/", 1)[-1])
        return original(store, name)

    monkeypatch.setattr(Store, "read", record)
    return read


def test_finding_which_of_many_runs_are_finished_reads_no_tensors(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"run-{n}" for n in range(12)]
    for n, key in enumerate(keys):
        write(store, FIRST, at(1, key=key))
        write(store, FIRST, at(4, finished=n % 2 == 0, key=key))
    write(store, FIRST, at(4, finished=True, key="other"))
    read = watch_reads(monkeypatch)
    found = ckpt.find_finished_checkpoints(store, [*keys, "none"])
    assert sorted(found) == sorted(keys[::2]) and all(c.key == key for key, c in found.items())
    assert read and set(read) == {COMMIT, "state.json"} and len(read) == 2 * (len(keys) + 6)
    assert [ckpt.find_finished_checkpoint(store, key) for key in keys] == [found.get(key) for key in keys]


def test_many_runs_are_found_by_one_listing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"run-{n}" for n in range(2000 if CHAOS else 50)]
    for key in keys[:40]:
        write(store, FIRST, at(4, finished=True, key=key))
    listed: list[str] = []
    monkeypatch.setattr(
        Store, "measure_files", lambda store, p, plain=Store.measure_files: (listed.append(p), plain(store, p))[1]
    )
    assert sorted(ckpt.find_finished_checkpoints(store, keys)) == sorted(keys[:40]) and listed == ["runs"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "metrics.json", COMMIT])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_what_lacks_a_file_or_a_part_of_one_is_not_finished(store: Store, name: str, harm: str) -> None:
    opened = ckpt.write_checkpoint(store, FIRST, at(4, finished=True))
    assert ckpt.find_finished_checkpoint(store, KEY) == opened
    path = Path(store.resolve_path(f"{opened.prefix}/{name}"))
    path.unlink() if harm == "gone" else path.write_bytes(path.read_bytes()[:-3])
    assert ckpt.find_finished_checkpoint(store, KEY) is None


@pytest.mark.parametrize("part", ["state", "experiment", "split", "metrics", "weights", "optimizer_state"])
def test_a_damaged_file_is_named_with_its_checkpoint_when_it_is_read(store: Store, part: str) -> None:
    prefix = write(store, FIRST, WHOLE)
    name = {"weights": "model.safetensors", "optimizer_state": "optimizer.safetensors"}.get(part, f"{part}.json")
    path = Path(store.resolve_path(f"{prefix}/{name}"))
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"xx")
    with pytest.raises(DataError, match=rf"{prefix}/{name} is damaged: its sha256 is not the one in COMMIT"):
        getattr(ckpt.OpenedCheckpoint(store, prefix), part)
    path.unlink()
    with pytest.raises(DataError, match=rf"{prefix}/{name} does not exist"):
        getattr(ckpt.OpenedCheckpoint(store, prefix), part)


@pytest.mark.parametrize(("number", "reported"), [(2, "the format 2"), (None, "no format number")])
def test_a_checkpoint_of_another_format_is_refused_in_one_line(store: Store, number: int | None, reported: str) -> None:
    opened = ckpt.write_checkpoint(store, FIRST, at(4, finished=True))
    files = opened.read_files()
    state = {k: v for k, v in (json.loads(files["state.json"]) | {"format": number}).items() if v is not None}
    store.commit(opened.prefix, files | {"state.json": json.dumps(state).encode()})
    with pytest.raises(DataError) as caught:
        ckpt.open_finished_checkpoint(opened.path)
    assert f"state.json has {reported}, and this version reads format 1; train it again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ckpt.find_finished_checkpoint(store, KEY) is None


def test_a_run_that_another_builds_on_and_that_is_damaged_says_the_way_out(store: Store) -> None:
    with pytest.raises(DataError, match="the run run has no checkpoint; train it first"):
        ckpt.load_trained(store, KEY)
    prefix = write(store, FIRST, at(4, finished=True))
    assert same(ckpt.load_trained(store, KEY), at(4, finished=True))
    path = Path(store.resolve_path(f"{prefix}/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    with pytest.raises(DataError, match=r"model.safetensors is damaged.*; delete .*/runs/run and give the command"):
        ckpt.load_trained(store, KEY)


def test_an_opened_checkpoint_travels_without_tensors_and_is_the_same(store: Store) -> None:
    opened = ckpt.write_checkpoint(store, FIRST, WHOLE)
    assert len(opened.weights) == 3
    sent = pickle.dumps(opened)
    assert len(sent) < 2000 and pickle.loads(sent) == opened and hash(pickle.loads(sent)) == hash(opened)
    assert same(pickle.loads(sent).load(), WHOLE)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(store: Store) -> None:
    prefix = write(store, FIRST, WHOLE)
    names = {Path(n).name for n in store.list_files(prefix)}
    assert {n for n in names if not n.endswith(".json")} == {"model.safetensors", "optimizer.safetensors", COMMIT}


def test_the_latest_is_the_furthest_and_not_the_last_written(store: Store) -> None:
    assert ckpt.load_latest_checkpoint(store, KEY) == (None, [])
    for made in (at(1), at(10), at(2, 9)):
        write(store, FIRST, made)
    found, damaged = ckpt.load_latest_checkpoint(store, KEY)
    assert found and found[1].state.position == Position(10, 0) and damaged == []
    assert [p for _, p, _ in ckpt.list_checkpoints(store, KEY)] == [Position(10, 0), Position(2, 9), Position(1, 0)]
    assert ckpt.load_latest_checkpoint(store, "ru") == (None, [])


def test_an_attempt_that_was_given_up_and_writes_on_cannot_win(store: Store) -> None:
    """On an object store, which has no locks, a process may live on that was taken for dead."""
    write(store, FIRST, at(1))
    second = write(store, SECOND, at(1, 5))
    late = write(store, FIRST, at(4, finished=True))
    ckpt.prune_checkpoints(store, KEY, FIRST, keep=1)
    found, _ = ckpt.load_latest_checkpoint(store, KEY)
    assert found and found[0] == second and not found[1].state.finished
    assert prefixes(store) == [second, late]
    ckpt.prune_checkpoints(store, KEY, SECOND, keep=1)
    assert prefixes(store) == [second]


def test_two_processes_that_start_at_once_write_different_folders(store: Store) -> None:
    write(store, FIRST, at(1))
    one, other = ckpt.make_attempt_name(store, KEY), ckpt.make_attempt_name(store, KEY)
    assert one != other and one.startswith("a0001-") and other.startswith("a0001-") and min(one, other) > FIRST
    made = {write(store, attempt, at(2)) for attempt in (one, other)}
    assert len(made) == 2 and ckpt.make_attempt_name(store, KEY) > max(one, other)
    assert made < set(prefixes(store))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "experiment.json", COMMIT]
)
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store: Store, name: str, harm: str) -> None:
    before, last = write(store, FIRST, at(1)), write(store, FIRST, at(2))
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
    found, damaged = ckpt.load_latest_checkpoint(store, KEY)
    assert found and found[0] == before and same(found[1], at(1))
    if (name, harm) == (COMMIT, "gone"):  # never finished, so there is nothing to say
        assert damaged == []
    else:
        assert len(damaged) == 1 and last in damaged[0]


def test_an_attempt_that_was_killed_while_writing_does_not_count(store: Store) -> None:
    prefix = ckpt.make_checkpoint_prefix(KEY, FIRST, Position(5, 0))
    store.write(f"{prefix}/model.safetensors", b"half")
    assert ckpt.load_latest_checkpoint(store, KEY) == (None, [])
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
    prefix = write(store, FIRST, WHOLE)
    files = store.read_committed(prefix) | {name: made.read_bytes()}
    store.commit(prefix, files)  # with the right hash: whoever can write files can write COMMIT
    with pytest.raises(DataError, match="not a checkpoint of this program"):
        ckpt.OpenedCheckpoint(store, prefix).load()
    assert not proof.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "split.json", "metrics.json", "experiment.json"])
@pytest.mark.parametrize("content", [b"[]", b"null", b'{"a": 1}', b"", None])
def test_a_commit_of_other_files_is_not_a_checkpoint(store: Store, name: str, content: bytes | None) -> None:
    files = store.read_committed(write(store, FIRST, WHOLE))
    files = {k: v for k, v in files.items() if k != name} | ({} if content is None else {name: content})
    if (name, content) == ("metrics.json", b'{"a": 1}'):
        return
    if (name, content) == ("metrics.json", b"[]"):
        assert parse_checkpoint(files, "x").metrics == {}
        return
    with pytest.raises(DataError, match="x is not a checkpoint"):
        parse_checkpoint(files, "x")


def test_pruning_keeps_the_newest_and_the_best_by_validation(store: Store) -> None:
    scores = {1: 0.5, 2: 0.7, 3: 0.7, 4: float("nan"), 5: 0.6, 6: None, 7: 0.1}
    for epoch, score in scores.items():
        metrics = {} if score is None else {SELECTION_METRIC: score}
        write(store, FIRST, replace(at(epoch), metrics=metrics))
        ckpt.prune_checkpoints(store, KEY, FIRST, keep=2)
    assert [p.epoch for _, p, _ in ckpt.list_checkpoints(store, KEY)] == [7, 6, 3]


def test_pruning_sweeps_what_dead_attempts_were_writing_but_not_what_may_still_be_written(store: Store) -> None:
    first = write(store, FIRST, at(1))
    halves = {attempt: f"runs/{KEY}/{attempt}/e0009-s000000/model.safetensors" for attempt in (FIRST, SECOND, THIRD)}
    for name in halves.values():
        store.write(name, b"half")
    second = write(store, SECOND, at(2))
    ckpt.prune_checkpoints(store, KEY, SECOND, keep=2)
    assert (
        store.exists(halves[FIRST]) and ckpt.load_latest_checkpoint(store, KEY)[0]
    )  # where something is left, nothing is swept
    ckpt.prune_checkpoints(store, KEY, SECOND, keep=1)
    assert not store.list_files(f"runs/{KEY}/{FIRST}") and not store.is_committed(first)
    assert store.is_committed(second) and store.exists(halves[SECOND]) and store.exists(halves[THIRD])


def test_pruning_keeps_the_last_of_all_attempts_and_leaves_other_runs(store: Store) -> None:
    made = [write(store, attempt, at(epoch)) for attempt, epoch in ((FIRST, 1), (FIRST, 2), (SECOND, 3))]
    other = write(store, FIRST, at(1, key="other"))
    ckpt.prune_checkpoints(store, KEY, THIRD, keep=1)
    assert prefixes(store) == [made[2]]
    assert same(ckpt.OpenedCheckpoint(store, made[2]).load(), at(3))
    assert same(ckpt.OpenedCheckpoint(store, other).load(), at(1, key="other"))
