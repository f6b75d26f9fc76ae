"""`make demo`: the main job from raw files to predictions, on synthetic subjects with a known best accuracy."""

import shutil
import time
from pathlib import Path

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.data.synthetic.ideal_observer import bayes_accuracy
from eav_ray.distributed.connection import connect_experiment
from eav_ray.evaluation.summary import SearchOptimism
from eav_ray.pipelines.evaluate.evaluate import evaluate_checkpoint
from eav_ray.pipelines.inference.prediction_tables import predict_to_file
from eav_ray.pipelines.inference.pull import pull
from eav_ray.pipelines.preprocess.dataset_check import check_dataset
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.preprocess.quality_page import write_quality_page
from eav_ray.pipelines.search.search import announce_search, run_search
from eav_ray.pipelines.search.search_plan import plan_search
from eav_ray.reporting.tables import format_optimism
from eav_ray.storage import Store
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.words import format_count, format_duration

SYNTHETIC_NOTE = (
    "the subjects are synthetic: their signals are generated, with a known best possible accuracy, and say nothing of "
    "people; numbers differ between processors and numbers of threads"
)


def run_demo(experiment: Experiment, *, n_subjects: int, per_class: int, workers: int) -> None:
    """Run everything, skipping what an earlier demo finished.

    Whether the fusion beats a single modality or a rule is printed with its counts and decides nothing: with the few
    recordings of a demo it may come out either way.
    """
    began = time.perf_counter()
    e = experiment
    spec = SyntheticSpec(n_subjects=n_subjects, per_class=per_class)
    runs = e.split.n_inner_folds * 3 + 3
    fusions = e.search.candidates * e.split.n_inner_folds
    print(
        f"demo: {format_count(n_subjects, 'synthetic subject')}, "
        f"{format_count(n_subjects * per_class * 5, 'recording')}; {format_count(runs, 'encoder training')}, "
        f"{format_count(e.search.candidates, 'candidate')} x {format_count(e.split.n_inner_folds, 'inner fold')} = "
        f"{format_count(fusions, 'fusion training')}, 1 refit",
        flush=True,
    )
    with open_progress_bar("generate", n_subjects, "subjects") as bar:
        generate_dataset(e.data.root, spec, workers=workers, progress=bar.set_done)
    found = check_dataset(e)
    print(
        f"check: {format_count(len(found.recordings), 'recording')}, {format_count(len(found.problems), 'problem')}",
        flush=True,
    )
    with connect_experiment(e) as e:
        _, quality_page = write_quality_page(e, preprocess(e), frames=False)
        data = open_dataset(e)
        search_plan = plan_search(e, data)
        announce_search(e, [search_plan], data)
        best = run_search(search_plan, data)
        path = pull_if_missing(e.store.results, best.study_name, best.checkpoint)
        bayes = {m: bayes_accuracy([m]) for m in ("audio", "eeg", "video")}
        bayes["fusion"] = bayes_accuracy(["audio", "eeg", "video"])
        evaluation = evaluate_checkpoint(e, path, bayes=bayes)
        subject = evaluation.correct["subject"].iloc[0]
        out = str(Path(e.store.results) / f"predictions-{subject}.csv")
        changes = {"data.root": e.data.root, "data.subjects": [subject], "runtime.gpus_per_worker": e.runtime.gpus}
        predictions = predict_to_file(path, changes, out)
    correct = evaluation.correct.groupby("label")["fusion"].mean().mean()
    optimism_line = format_optimism({0: SearchOptimism(best.inner_score, float(correct), best.candidate.changes)})
    print(f"\n{predictions.text}\n\n{evaluation.text}\n{optimism_line}\n")
    print(f"checkpoint: {path}")
    print(f"quality:    {quality_page}")
    print(f"results:    {e.store.results}/searches/{best.study_name} (search.html)")
    print(f"note:       {SYNTHETIC_NOTE}")
    print(f"took {format_duration(time.perf_counter() - began)}")


def pull_if_missing(results: str, study: str, checkpoint: str) -> str:
    """Where an earlier demo pulled this checkpoint to, or a new copy; a pull that was killed is started over."""
    target = Path(results) / "best" / checkpoint.replace("/", "-")
    if Store(target.parent).is_committed(target.name):
        return str(target)
    shutil.rmtree(target, ignore_errors=True)
    (path,) = pull(results, str(target), name=study).paths
    return path
