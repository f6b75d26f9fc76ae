"""What must survive, and the tests that show it: a short case in `make test`, full counts in `make chaos`.

`make chaos` writes docs/results/reliability.md from what these tests did.
"""

import os

import pytest

CHAOS = os.environ.get("EAV_RAY_HYPOTHESIS") == "chaos"  # full counts instead of a short case (`make chaos`)
IN_CHAOS = pytest.mark.skipif(not CHAOS, reason="in `make chaos` only: it takes more than a minute")


# Row -> what is done to the program, what must come of it, and where that is tested. A place is a file, or the
# beginning of a test's name in one.
ROWS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "R1": (
        "SIGKILL of a training worker, or of all, at random steps",
        "weights bit-identical to the run that was left alone (fp32, CPU, same world size); at most one interval lost, "
        "and the one that was being written",
        (
            "tests/training/test_kill.py",
            "tests/integration/test_stop.py",
            "tests/training/test_resume.py::test_a_run_that_ends",
        ),
    ),
    "R2": (
        "a node is drained, another is taken away without a warning",
        "as R1; no placement group is left",
        ("tests/integration/test_nodes.py",),
    ),
    "R3": (
        "the search's driver is killed after any answer",
        "no finished candidate runs twice; the set is that of the search that was left alone",
        (
            "tests/tuning/test_study.py::test_a_search_killed_after_any_answer",
            "tests/tuning/test_study.py::test_a_journal_cut",
            "tests/integration/test_full_search.py",
        ),
    ),
    "R4": (
        "the number of workers changes inside an epoch",
        "each window is seen exactly once an epoch",
        ("tests/training/test_loop.py::test_a_world_that_changes",),
    ),
    "R5": (
        "the disk is full at any write",
        "one line; what was committed loads and goes on",
        ("tests/training/test_full_disk.py", "tests/storage/test_storage.py::test_a_disk_that_is_full"),
    ),
    "R6": (
        "a checkpoint cut at random places, a bit flipped, a file gone",
        "noticed by hash; the one before is taken",
        (
            "tests/storage/test_storage.py::test_a_cut_anywhere",
            "tests/storage/test_storage.py::test_a_missing_file_and_a_single_flipped_bit",
            "tests/training/test_checkpoint.py::test_a_damaged_checkpoint",
        ),
    ),
    "R7": (
        "two writers of one run",
        "a file system: one gets an error; an object store: the older attempt cannot win, files never mix",
        (
            "tests/storage/test_storage.py::test_a_lock_has_one_holder",
            "tests/training/test_checkpoint.py::test_an_attempt_that_was_given_up",
            "tests/training/test_checkpoint.py::test_two_processes",
        ),
    ),
    "R8": (
        "a shard with its footer cut, a byte flipped, another schema, no rows",
        "the error names the shard",
        ("tests/data/shards/test_shards.py::test_a_shard_",),
    ),
    "R9": (
        "a film cut anywhere, without its index, empty, of variable rate, too slow",
        "never a hang, never a dead driver; set aside with its reason",
        (
            "tests/data/io/test_video.py::test_a_film_",
            "tests/data/io/test_video.py::test_a_file_that_takes_too_long",
            "tests/data/io/test_video.py::test_a_variable_rate",
            "tests/data/io/test_video.py::test_what_is_no_film",
            "tests/integration/test_jobs.py::test_a_recording_that_cannot_be_read",
            "tests/integration/test_jobs.py::test_a_file_that_ends_its_process",
        ),
    ),
    "R10": (
        "EEG with NaN or Inf, flat channels, another rate, another number of channels, v7.3",
        "refused or masked; never a NaN loss",
        (
            "tests/data/preprocessing/test_eeg_clean.py::test_what_is_no_recording",
            "tests/data/preprocessing/test_eeg_clean.py::test_a_bad_channel",
            "tests/data/datasets/test_eav.py::test_eeg_of_the_wrong_shape",
            "tests/data/preprocessing/test_windowing.py::test_bad_eeg_is_named",
        ),
    ),
    "R11": (
        "each of the seven subsets of modalities",
        "forward and backward are finite; what is missing weighs exactly nothing",
        ("tests/models/fusion/test_fusion.py::test_each_subset_trains",),
    ),
    "R12": (
        "a score that is no number",
        "the candidate has failed and is never the best",
        (
            "tests/tuning/test_study.py::test_a_score_that_is_no_number",
            "tests/tuning/test_study.py::test_nothing_is_best",
        ),
    ),
    "R13": (
        "a malicious pickle in every place that a command reads",
        "refused, not executed",
        ("tests/training/test_checkpoint.py::test_a_malicious_pickle", "tests/test_pickles.py"),
    ),
    "R14": (
        "names that lead out of their folder: `..`, absolute, links",
        "refused; nothing is read or written there",
        (
            "tests/storage/test_storage.py::test_a_name_that_leads_outside",
            "tests/storage/test_storage.py::test_a_commit_that_names_a_file_outside",
            "tests/storage/test_storage.py::test_links_that_lead_outside",
            "tests/pipelines/inference/test_pull.py::test_a_record_that_names",
            "tests/pipelines/inference/test_pull.py::test_a_commit_that_names_files_outside",
        ),
    ),
    "R15": (
        "a dashboard or job server beyond loopback, or without a token",
        "refused",
        (
            "tests/distributed/test_cluster.py::test_a_cluster_",
            "tests/integration/test_submit.py::test_the_job_server_refuses",
        ),
    ),
    "R16": (
        "random damage to .mat, wav, mp4, Parquet, index and table, and to EEG files and their headers",
        "only our own errors; of headers the right values, an error or a remark",
        (
            "tests/data/io/test_hostile_files.py",
            "tests/data/io/test_hostile_eeg.py",
            "tests/data/io/test_damaged_headers.py",
        ),
    ),
    "R17": (
        "a cluster grows from no worker node to three for a search, and shrinks to none",
        "all candidates finish; no busy node is removed",
        ("tests/integration/test_autoscaling.py",),
    ),
    "R18": (
        "the S3 server goes away in a run, for a while or for good",
        "the same end, or one line; nothing half-written is loaded",
        ("tests/storage/test_s3.py",),
    ),
    "R19": (
        "permuted labels",
        "accuracy inside the 99.9 % band of chance",
        ("tests/training/test_chance_control.py::test_permuted_labels",),
    ),
    "R20": (
        "a person or a recording on both sides",
        "the run does not start",
        (
            "tests/training/test_chance_control.py::test_a_run_that_leaks",
            "tests/data/test_splits.py::test_a_forced_leak",
        ),
    ),
    "R21": (
        "every request of a resume and of a save fails on one rank: refused, done but lost, hidden, cut, for good",
        "all ranks go on from the very position that the first chose, or fail together; nothing is called damaged",
        (
            "tests/training/test_faulty_ranks.py",
            "tests/storage/test_faulty_store.py::test_each_request",
            "tests/storage/test_faulty_store.py::test_a_resume",
            "tests/integration/test_jobs.py::test_the_search_keeps",
        ),
    ),
    "R22": (
        "a training loses its workers 50 times, each time after something newer was committed; then without progress",
        "bit-identical; failed after three attempts without progress, with the error of the rank that raised first",
        (
            "tests/distributed/test_worker_groups.py::test_a_training_that_",
            "tests/distributed/test_failures.py::test_a_run_that_commits",
            "tests/distributed/test_failures.py::test_three_losses",
            "tests/distributed/test_failures.py::test_the_first_original_error",
            "tests/integration/test_failures.py::test_a_training_that_fails",
        ),
    ),
    "R23": (
        "an elastic group shrinks and grows ten times",
        "it ends; a resize is no lost attempt",
        (
            "tests/distributed/test_failures.py::test_a_group_that_is_resized",
            "tests/distributed/test_failures.py::test_a_machine_that_went_away",
            "tests/distributed/test_failures.py::test_what_ray_says_of_a_group",
        ),
    ),
    "R24": (
        "a machine with GPUs and a run without",
        "workers see no GPU; the engine's device is DeepSpeed's; `auto` takes one a worker where there are",
        ("tests/integration/test_gpus.py", "tests/distributed/test_connection.py"),
    ),
    "R25": (
        "two drivers on one store: the first stands still at a request, the second takes over, the first wakes late",
        "the second is refused while the first lives; the late one writes nothing more; no row is lost, nothing mixed",
        (
            "tests/pipelines/search/test_two_drivers.py",
            "tests/storage/test_faulty_store.py::test_a_lease_",
            "tests/storage/test_storage.py::test_a_disk_without_locks",
        ),
    ),
    "R26": (
        "a store without rights, a cache larger than the disk, no GPU, a cache file that cannot be read",
        "one line with cause and machine; at most three starts of a group, whatever the number of runs",
        (
            "tests/distributed/test_worker_groups.py::test_a_cache_",
            "tests/distributed/test_worker_groups.py::test_a_gpu_",
            "tests/distributed/test_worker_groups.py::test_a_store_",
            "tests/distributed/test_worker_groups.py::test_a_group_whose_workers_cannot_start",
            "tests/distributed/test_failures.py::test_a_lasting_error",
            "tests/distributed/test_failures.py::test_a_group_that_cannot_start",
        ),
    ),
    "R27": (
        "the actor of the queue is killed",
        "rebuilt from the store; no run is handed out twice, no worker is started anew",
        (
            "tests/integration/test_failures.py::test_a_killed_queue",
            "tests/distributed/test_failures.py::test_a_queue_that_was_started_again",
        ),
    ),
    "R28": (
        "a fault of the store on one rank only",
        "ranks stay in step; the attempt ends on all of them, and the next goes on",
        ("tests/training/test_faulty_ranks.py", "tests/training/test_collectives.py"),
    ),
    "R29": (
        "a cluster without a token whose dashboard is on loopback; a token in the client's environment only",
        "refused: it is asked once without a token",
        (
            "tests/distributed/test_cluster.py::test_a_cluster_",
            "tests/integration/test_access.py::test_a_cluster_without_a_token",
        ),
    ),
    "R30": (
        "a secret in any URL of an experiment",
        "refused before anything is written, without saying it",
        ("tests/config/test_paths.py::test_a_secret",),
    ),
    "R31": (
        "a job is stopped, or a node gets SIGTERM, while 2 GB are saved at 50 MB/s",
        "saved; grace times of Ray, Kubernetes and Slurm fit two such saves",
        (
            "tests/test_leave.py",
            "tests/training/test_kill.py::test_no_rank_leaves",
            "tests/training/test_resume.py::test_a_run_that_is_asked_to_leave",
            "tests/integration/test_submit.py::test_a_job_that_is_stopped",
            "tests/integration/test_nodes.py::test_a_node_that_must_end",
            "tests/integration/test_slurm.py",
        ),
    ),
    "R32": (
        "300 trainings in one job; a full disk under the trackers",
        "no more descriptors and threads than with one; the watcher lives, the training goes on, with one line",
        (
            "tests/tracking/test_tensorboard.py::test_300_trainings",
            "tests/tracking/test_tensorboard.py::test_a_full_disk",
            "tests/tracking/test_mlflow.py::test_many_trainings",
        ),
    ),
    "R33": (
        "8 workers of a node open one data set; one is killed as it writes the cache; files go while they are opened",
        "each shard is fetched once; what is left over counts and goes; no error; embeddings are mapped, not copied",
        ("tests/storage/test_node_cache.py", "tests/training/test_mapped_embeddings.py"),
    ),
    "R34": (
        "connections that never finish their headers, send no body or no message; frames of 16000 x 16000; no token",
        "closed within 10 seconds; less than 100 MiB more memory; a 401 for everything but a liveness route",
        (
            "tests/data/io/test_video.py::test_a_film_with_a_frame",
            "tests/data/io/test_video.py::test_single_frames",
            "tests/pipelines/inference/test_proxy.py",
            "tests/integration/test_serve.py",
        ),
    ),
    "R35": (
        "a neighbour on the network of a machine that trains, and another user of it",
        "everything listens on loopback; the file of the token is its owner's alone",
        (
            "tests/integration/test_access.py::test_a_ray_of_a_jobs_own",
            "tests/distributed/test_cluster.py::test_the_token_of_a_ray",
            "tests/distributed/test_cluster.py::test_a_named_token",
            "tests/distributed/test_cluster.py::test_ranks_find_each_other",
        ),
    ),
    "R36": (
        "2,016 runs and 300 groups, faked; a search of 42 folds",
        "the queue looks once after each change; one listing says what is finished, and no weights are read for it; "
        "waiting groups end when fewer runs are left than groups; the driver of a search plans a candidate once",
        (
            "tests/distributed/test_run_queue.py::test_2016_runs",
            "tests/training/test_checkpoint.py::test_many_runs_are_found",
            "tests/training/test_checkpoint.py::test_finding_which_of_many_runs",
            "tests/pipelines/search/test_search.py::test_the_driver_plans_a_candidate",
            "tests/tuning/test_study.py::test_cmaes_is_led",
        ),
    ),
    "R37": (
        "Ray, DeepSpeed or torch are upgraded",
        "a private or unstable name that is gone is named",
        ("tests/distributed/test_private_names.py", "tests/training/test_private_names.py"),
    ),
    "R38": (
        "head and driver are lost in a search and in a protocol",
        "the same command on a new head goes on; a protocol ends bit-identical",
        (
            "tests/integration/test_protocol.py::test_a_protocol_whose_head",
            "tests/integration/test_full_search.py",
        ),
    ),
}


def list_rows(test: str) -> list[str]:
    """Rows that a test, by its node id, is a case of."""
    return [row for row, (_, _, places) in ROWS.items() if any(test.startswith(place) for place in places)]
