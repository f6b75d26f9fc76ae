"""The queue hands out each run once, after the encoders it needs, and one failure leaves its neighbours alone."""

import time
from dataclasses import replace

import pytest

from eav_ray.config import Experiment, load_experiment
from eav_ray.data.splits import Split
from eav_ray.distributed.run_queue import END, WAIT, RunQueue
from eav_ray.training.run_spec import Progress, Run, plan_encoder_run, plan_fusion_run, plan_runs_of_splits
from tests.helpers.paths import DEMO
from tests.helpers.reliability import CHAOS

SPLIT = Split("subject_kfold", ("a/1", "b/1"), (), ("c/1",))


@pytest.fixture
def experiment() -> Experiment:
    return load_experiment(DEMO)


@pytest.fixture
def runs(experiment: Experiment) -> list[Run]:
    """The fusion first, then its encoders: the order given is not the order in which they can run."""
    encoders = [plan_encoder_run(experiment, m, SPLIT, "data", SPLIT.train) for m in ("audio", "eeg", "video")]
    return [plan_fusion_run(experiment, SPLIT, "data", SPLIT.train), *encoders]


def pull(queue: RunQueue, group: int) -> Run:
    task = queue.pull(group)
    assert isinstance(task, Run)
    return task


def test_every_run_is_handed_out_once_and_a_fusion_after_its_encoders(runs: list[Run]) -> None:
    queue, order = RunQueue(runs), []
    while (task := queue.pull(0)) != END:
        assert isinstance(task, Run)
        order.append(task.kind)
        queue.finish(0, "prefix")
    assert order == ["encoder", "encoder", "encoder", "fusion"]


def test_two_groups_never_get_the_same_run_and_wait_for_what_is_running(runs: list[Run]) -> None:
    queue = RunQueue(runs)
    taken = [pull(queue, 0), pull(queue, 1), pull(queue, 2)]
    assert len({run.key for run in taken}) == 3
    assert queue.pull(3) == WAIT


def test_a_group_that_was_restarted_gets_its_run_again(runs: list[Run]) -> None:
    queue = RunQueue(runs)
    assert pull(queue, 0) is pull(queue, 0)


def test_a_failed_encoder_fails_its_fusion_and_nothing_else(runs: list[Run]) -> None:
    queue = RunQueue(runs)
    pull(queue, 0)
    queue.fail(0, "no good")
    for _ in range(2):
        pull(queue, 0)
        queue.finish(0, "prefix")
    assert queue.pull(0) == END
    state = queue.get_state()
    assert len(state.done) == 2 and len(state.failed) == 2
    assert "its encoder" in state.failed[runs[0].key]


def test_a_key_names_the_training_rows_and_not_the_rows_that_are_scored(experiment: Experiment) -> None:
    def key(split: Split) -> str:
        return plan_encoder_run(experiment, "eeg", split, "data", ()).key

    assert key(SPLIT) == key(replace(SPLIT, test=("d/1",), validation=("c/1",)))
    assert key(SPLIT) != key(replace(SPLIT, train=("a/1", "c/1")))


def test_a_fusion_never_reads_an_encoder_that_was_trained_on_other_rows(experiment: Experiment) -> None:
    here, there = (
        plan_fusion_run(experiment, s, "data", ("a/1",)) for s in (SPLIT, replace(SPLIT, train=("a/1", "c/1")))
    )
    assert not set(here.encoder_keys.values()) & set(there.encoder_keys.values())


def test_a_checkpoint_that_was_passed_over_is_told_once(runs: list[Run]) -> None:
    queue = RunQueue(runs)
    run = pull(queue, 0)
    for epoch in (1, 2):
        queue.report_progress(
            Progress(run.key, run.title, epoch, 2, 5 * epoch, {"train_loss": 1.0}, ("e0001 is damaged",))
        )
    assert queue.get_state().damaged_checkpoints == ("e0001 is damaged",)


def test_2016_runs_and_300_groups_take_a_queue_seconds(experiment: Experiment) -> None:
    """Groups ask again and again while none can start; each change makes the queue look once."""
    splits = [replace(SPLIT, train=(f"a/{number}", "b/1")) for number in range(504 if CHAOS else 126)]
    runs = [run for planned in plan_runs_of_splits(experiment, splits, "data") for run in planned]
    queue, n_groups = RunQueue(runs), 300
    groups, pulls, done = dict[int, Run | str](), 0, list[str]()
    began = time.process_time()
    while len(done) < len(runs):
        idle = [group for group in range(n_groups) if groups.get(group, WAIT) == WAIT]
        for group in idle:
            groups[group] = queue.pull(group)
            pulls += 1
        for group in [group for group, run in groups.items() if isinstance(run, Run)][::7]:
            done.append(groups.pop(group).key)  # pyright: ignore[reportAttributeAccessIssue]
            queue.finish(group, "prefix")
        # No group waits for runs that others will have.
        assert sum(run != END for run in groups.values()) <= max(1, len(runs) - len(done))
    assert len(set(done)) == len(runs) and pulls > len(runs)
    assert time.process_time() - began < 60  # a second, of hours


def test_epochs_that_were_saved_earlier_count_before_anything_is_reported(runs: list[Run]) -> None:
    first, second = runs[1:3]
    queue = RunQueue(runs, done={first.key: "prefix"}, begun={first.key: 1, second.key: 2})
    assert queue.get_state().epochs_done == first.epochs + 2
    queue.report_progress(Progress(second.key, second.title, 1.5, second.epochs, 0, {"train_loss": 1.0}))
    assert queue.get_state().epochs_done == first.epochs + 1.5
