"""What a job announces: what is left, in the right number, and for how long, by what was measured before."""

from dataclasses import replace
from pathlib import Path

import pytest

from eav_ray.config import Experiment, override
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.distributed.run_queue import QueueState
from eav_ray.distributed.timings import TimingRecorder, make_model_key, make_search_key, read_timings, write_timings
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.train import workload
from eav_ray.pipelines.train.train import format_training_scores
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.storage import COMMIT, Store
from eav_ray.training.positions import find_newest_position, find_newest_positions, make_checkpoint_prefix
from eav_ray.training.run_spec import Position, Progress, Run, plan_runs
from tests.helpers.datasets import make_dataset


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    changes = {"data.modalities": ["audio", "eeg"], "store.results": str(tmp_path / "results"), "runtime.workers": 1}
    changes |= {"runtime.gpus_per_worker": 0, "split.protocol": "loso", "model.audio.kind": "mfcc"}
    return override(Experiment(), changes | {"model.eeg.kind": "bandpower"})


def plan(e: Experiment) -> list[Run]:
    data = make_dataset(e)
    return plan_runs(e, make_split(list_labeled_recordings(data.windows.ids, e.data, e.seed), e.split), data.digest)


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording has one window; encoders take a millisecond for it, and fusions a tenth of that."""
    from eav_ray.data.shards.window_cache import WindowCache

    monkeypatch.setattr(WindowCache, "find_rows", lambda self, recordings: list(recordings))
    monkeypatch.setattr(WindowCache, "__len__", lambda self: len(self.ids))
    monkeypatch.setattr(
        workload, "estimate_seconds_per_window", lambda e, shapes: dict.fromkeys(e.data.modalities, 1e-3)
    )
    monkeypatch.setattr(workload, "estimate_seconds_per_fused_window", lambda e, shapes: 1e-4)


def test_one_training_is_one_and_start_up_counts(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    runs, data = plan(experiment), make_dataset(experiment)
    seconds = announce_workload(experiment, runs, data)
    line = capsys.readouterr().out
    assert line.startswith("to do: 2 encoder trainings, 1 fusion training; about ")
    assert seconds > workload.WORKER_GROUP_START_S + 3 * workload.RUN_OVERHEAD_S
    single = override(experiment, {"data.modalities": ["eeg"]})
    announce_workload(single, plan(single), data)
    assert capsys.readouterr().out.startswith("to do: 1 encoder training; about ")


def test_electrodes_are_known_when_trainings_are_estimated(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def estimate(e: Experiment, shapes: DataShapes) -> dict[str, float]:
        seen.append(shapes.eeg_channel_names)
        return dict.fromkeys(e.data.modalities, 1e-3)

    monkeypatch.setattr(workload, "estimate_seconds_per_window", estimate)
    data = make_dataset(experiment)
    named = replace(data, index=replace(data.index, eeg_channel_names=("Cz",)))
    vars(named)["windows"] = data.windows
    announce_workload(experiment, plan(experiment), named)
    assert seen and set(seen) == {("Cz",)}


@pytest.mark.parametrize("key", ["trained_blocks", "lora_rank"])
def test_a_training_of_a_part_of_an_encoder_is_estimated_by_itself(
    experiment: Experiment, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = override(experiment, {f"train.encoders.eeg.{key}": 2})
    (whole_run,), (part_run,) = ([r for r in plan(e) if r.title == "eeg"] for e in (experiment, part))
    assert make_model_key(whole_run, experiment.runtime) != make_model_key(part_run, experiment.runtime)
    seen: list[int] = []

    def estimate(e: Experiment, shapes: DataShapes) -> dict[str, float]:
        seen.append(getattr(e.train.encoders["eeg"], key))
        return dict.fromkeys(e.data.modalities, 1e-3)

    monkeypatch.setattr(workload, "estimate_seconds_per_window", estimate)
    monkeypatch.setattr(workload, "count_learning_parameters", lambda e, m, shapes: (1, 2))
    announce_workload(experiment, [whole_run, part_run], make_dataset(experiment))
    assert sorted(seen) == [0, 2]


def test_what_is_finished_is_nothing_to_do(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, data = plan(experiment), make_dataset(experiment)
    monkeypatch.setattr(workload, "find_finished_runs", lambda runs, results: {run.key: None for run in runs})
    assert announce_workload(experiment, runs, data) == 0
    assert capsys.readouterr().out == "nothing to do: 3 trainings finished earlier\n"
    assert announce_workload(experiment, runs[:2], data, n_scored=16) == 0
    assert capsys.readouterr().out == "nothing to do: 2 trainings finished and 16 candidates scored earlier\n"
    announce_workload(experiment, runs[:2], data, n_scored=1, refit_runs=runs[2:])
    text = capsys.readouterr().out
    assert text.startswith(
        "to do: 1 fusion training of the refit (2 trainings finished and 1 candidate scored earlier);"
    )


def test_what_was_saved_is_gone_on_from_and_not_counted_again(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(run: Run, epoch: int) -> None:
        folder = Path(experiment.store.results, make_checkpoint_prefix(run.key, "a0000-0a", Position(epoch, 0)))
        folder.mkdir(parents=True)
        (folder / COMMIT).write_text("{}")

    eeg = override(experiment, {"data.modalities": ["eeg"], "train.encoders.eeg.epochs": 40})
    (run,), data = plan(eeg), make_dataset(eeg)
    whole = announce_workload(eeg, [run], data)
    assert capsys.readouterr().out.startswith("to do: 1 encoder training; about ")
    save(run, 10)
    save(run, 30)
    rest = announce_workload(eeg, [run], data)
    assert capsys.readouterr().out.startswith("to do: 1 encoder training, which goes on after epoch 30 of 40; about ")
    assert whole - rest == pytest.approx(30 * len(run.split.train) * 1e-3)
    runs = plan(experiment)
    save(runs[0], 2)
    announce_workload(experiment, runs, make_dataset(experiment))
    text = capsys.readouterr().out
    assert text.startswith(
        "to do: 2 encoder trainings, 1 fusion training, of which 1 goes on from what was saved; about "
    )


def test_an_estimate_learns_from_what_trainings_took(experiment: Experiment) -> None:
    """Also start-up, which is most of what small trainings take."""
    runs, data, results = plan(experiment), make_dataset(experiment), Store(experiment.store.results)
    recorder = TimingRecorder(experiment, runs, data)
    for run in runs:
        n_windows = len(run.split.train)
        for epoch in range(1, run.epochs + 1):
            recorder.note(Progress(run.key, run.title, epoch, run.epochs, epoch, {"windows_per_s": n_windows / 2.0}))
        recorder.note(Progress(run.key, run.title, 0.5, run.epochs, 1, {"windows_per_s": 1e-6}))  # of no whole epoch
    epochs_s = 2.0 * sum(run.epochs for run in runs)
    recorder.write(
        results, QueueState({}, {}, 0.0, "", False, (), busy_s=epochs_s + 12.0), wall_s=epochs_s + 12.0 + 40.0
    )
    timings = read_timings(results, experiment.runtime)
    assert timings.group_start_s == pytest.approx(40) and timings.run_overhead_s == pytest.approx(4)
    assert timings.window_s[make_model_key(runs[0], experiment.runtime)] == pytest.approx(2 / len(runs[0].split.train))
    assert announce_workload(experiment, runs, data) == pytest.approx(40 + 12 + epochs_s)
    # Another fold, of other windows, is as large; a larger model is not known.
    other = override(experiment, {"split.index": 1})
    assert announce_workload(other, plan(other), data) == pytest.approx(40 + 12 + epochs_s, rel=0.01)
    larger = override(experiment, {"model.eeg.width": 256})
    assert announce_workload(larger, plan(larger), data) < 40 + 12 + epochs_s


def test_a_stopped_job_teaches_nothing_and_a_damaged_file_is_none(experiment: Experiment) -> None:
    runs, data, results = plan(experiment), make_dataset(experiment), Store(experiment.store.results)
    recorder = TimingRecorder(experiment, runs, data)
    recorder.note(Progress(runs[0].key, "", 1, 1, 1, {"windows_per_s": 1.0}))
    recorder.write(results, QueueState({}, {}, 0.0, "", True, ()), wall_s=1.0)
    assert not results.exists("timings.json")
    for damaged in (b"[", b"[]", b'{"format": 1, "machines": 3}', b'{"format": 1, "machines": {}}'):
        results.write("timings.json", damaged)
        assert read_timings(results, experiment.runtime).group_start_s is None


def test_a_search_is_announced_by_what_its_like_took(experiment: Experiment) -> None:
    runs, data, results = plan(experiment), make_dataset(experiment), Store(experiment.store.results)
    candidates = runs[2:] * 8
    assumed = announce_workload(experiment, [], data, candidate_runs=candidates)
    timings = read_timings(results, experiment.runtime)
    timings.candidate_fold_s[make_search_key(experiment, experiment.runtime, len(runs[2].split.train))] = 7.0
    write_timings(results, experiment.runtime, timings)
    measured = announce_workload(experiment, [], data, candidate_runs=candidates, max_concurrent_trials=2)
    assert measured == pytest.approx(8 * 7.0 / 2) and assumed != measured


def test_a_training_ends_with_its_scores_and_what_was_not_tested(experiment: Experiment) -> None:
    split = plan(experiment)[0].split
    metrics = {"training_recording_accuracy": 0.953, "training_recording_balanced_accuracy": 0.95, "train_loss": 0.1}
    lines = format_training_scores(metrics, split, 5)
    assert lines[0].startswith(
        "training:   balanced accuracy 95.0 %, accuracy 95.3 %, recordings that it was trained on"
    )
    assert "chance is 20.0 %" in lines[0]
    assert lines[1] == "validation: none, as loso holds nothing out for it"
    assert lines[2] == "test:       8 recordings of 1 person, not looked at"
    validated = replace(split, validation=("p9/1", "p9/2"))
    assert "2 recordings of 1 person" in format_training_scores(metrics, validated, 5)[1]
    assert "not scored" in format_training_scores({}, validated, 5)[0]
    numbers = format_training_scores({"training_recording_ccc": 0.4, "training_recording_rmse": 1.25}, split, 0)[0]
    assert "rmse 1.250, ccc 0.400" in numbers and "chance" not in numbers


def test_what_was_saved_of_many_trainings_is_found_by_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, keys = Store(str(tmp_path)), [f"encoder-{k:02d}" for k in range(40)]
    for k, key in enumerate(keys[:-1]):
        for epoch in (k, 1):
            folder = tmp_path / make_checkpoint_prefix(key, "a0000-0a", Position(epoch, 0))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COMMIT).write_text("{}")
    expected = {key: find_newest_position(store, key) for key in keys[:-1]}
    assert find_newest_position(store, keys[-1]) is None and expected[keys[7]] == Position(7, 0)
    asked: list[str] = []
    list_files = store.list_files
    monkeypatch.setattr(store, "list_files", lambda prefix: asked.append(prefix) or list_files(prefix))
    assert find_newest_positions(store, keys) == expected and asked == ["runs"]
