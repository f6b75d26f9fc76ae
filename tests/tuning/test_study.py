"""A search that was killed, anywhere, suggests what the uninterrupted one would have, and asks nothing twice."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from eav_ray.config import Experiment, SearchConfig, SearchDimension, override
from eav_ray.config.fusion.bottleneck import BottleneckConfig
from eav_ray.config.fusion.gated import GatedConfig
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError
from eav_ray.pipelines.search.search_store import build_candidates_table
from eav_ray.tuning.pruning import compute_pruning_thresholds
from eav_ray.tuning.search_space import apply_candidate, check_search_space
from eav_ray.tuning.study import Candidate, StudyClient, make_study_name

# Optuna calls its journal and the constant liar experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE = {
    "fusion.heads": SearchDimension(choice=(1, 2, 4, 8)),
    "optim.lr": SearchDimension(low=1e-4, high=1e-1, log=True),
}
TPE = SearchConfig(candidates=8, ask_batch_size=2, sampler="tpe", space=SPACE)
NAME = "study"


def score(changes: dict[str, Any]) -> float:
    return 1 / changes["fusion.heads"] - abs(changes["optim.lr"] - 0.01)


def search(
    journal: Path | str, search: SearchConfig = TPE, *, reported: int | None = None, eager: bool = False
) -> list[Candidate]:
    """Ask and tell until the end, or until so many were told; a fresh owner, as after a kill.

    Args:
        eager: Ask for all that can be had before telling anything; else one after the other.
    """
    owner, asked = StudyClient(search, NAME, journal), []
    count = 0
    while reported is None or count < reported:
        open_now: list[Candidate] = []
        try:
            while (candidate := owner.ask()) is not None:
                open_now.append(candidate)
                asked.append(candidate)
                if not eager:
                    break
        except StopIteration:
            pass
        if not open_now:
            break
        for candidate in open_now:
            if reported is None or count < reported:
                owner.tell(candidate.number, score(candidate.changes))
                count += 1
    return asked


LISTS = {
    "fusion.heads": SearchDimension(choice=(1, 2, 4, 8)),
    "optim.lr": SearchDimension(choice=(1e-4, 1e-3, 1e-2, 1e-1)),
}


@pytest.fixture(scope="module", params=["tpe", "random", "cmaes", "grid"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchConfig, Any]:
    space = LISTS if request.param == "grid" else SPACE
    batch = 4 if request.param == "cmaes" else 2
    of = SearchConfig(candidates=8, ask_batch_size=batch, sampler=request.param, space=space)
    folder = tmp_path_factory.mktemp("study")
    return of, search(folder / "journal", of)


def test_candidates_are_numbered_and_within_the_space(uninterrupted: tuple[SearchConfig, list[Candidate]]) -> None:
    of, candidates = uninterrupted
    assert [c.number for c in candidates] == list(range(of.candidates))
    for candidate in candidates:
        assert candidate.changes.keys() == SPACE.keys()
        assert candidate.changes["fusion.heads"] in (1, 2, 4, 8)
        assert 1e-4 <= candidate.changes["optim.lr"] <= 1e-1
        override(Experiment(), candidate.changes)
    drawn = of.candidates if of.sampler != "grid" else 4
    assert len({c.changes["optim.lr"] for c in candidates}) == drawn


def test_asking_a_batch_at_once_or_one_by_one_suggests_the_same(
    uninterrupted: tuple[SearchConfig, list[Candidate]], tmp_path: Path
) -> None:
    of, candidates = uninterrupted
    assert search(tmp_path / "journal", of, eager=True) == candidates


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("reported", range(8))
def test_a_search_killed_after_any_answer_goes_on_as_if_it_had_not_been(
    uninterrupted: tuple[SearchConfig, list[Candidate]], reported: int, eager: bool, tmp_path: Path
) -> None:
    of, candidates = uninterrupted
    journal = tmp_path / "journal"
    search(journal, of, reported=reported, eager=eager)
    done = set(StudyClient(of, NAME, journal).completed())
    assert len(done) == reported
    rest = search(journal, of)
    assert not {c.number for c in rest} & done  # nothing finished is asked again
    assert sorted(rest, key=lambda c: c.number) == [c for c in candidates if c.number not in done]
    with pytest.raises(StopIteration):
        StudyClient(of, NAME, journal).ask()


def test_a_journal_cut_at_any_line_goes_on_as_if_it_had_not_been(
    uninterrupted: tuple[SearchConfig, list[Candidate]], tmp_path: Path
) -> None:
    of, candidates = uninterrupted
    whole = tmp_path / "whole"
    assert search(whole, of) == candidates
    lines = whole.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines)):
        journal = tmp_path / f"journal{cut}"
        journal.write_bytes(b"".join(lines[:cut]))
        done = set(StudyClient(of, NAME, journal).completed())
        rest = search(journal, of)
        assert sorted(rest, key=lambda c: c.number) == [c for c in candidates if c.number not in done], cut


def test_a_larger_budget_goes_on_where_the_smaller_ended(
    uninterrupted: tuple[SearchConfig, list[Candidate]], tmp_path: Path
) -> None:
    of, candidates = uninterrupted
    for smaller in (3, 4):
        journal = tmp_path / f"journal{smaller}"
        less = replace(of, candidates=smaller)
        assert search(journal, less) == candidates[:smaller]
        assert search(journal, of) == candidates[smaller:]


def test_a_grid_takes_every_combination_once_and_ends(tmp_path: Path) -> None:
    of = SearchConfig(candidates=50, ask_batch_size=4, sampler="grid", space=LISTS)
    candidates = search(tmp_path / "journal", of)
    assert StudyClient(of, NAME, tmp_path / "journal").n_candidates == 16
    assert len({tuple(c.changes.items()) for c in candidates}) == len(candidates) == 16


def test_a_grid_of_ranges_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"search.sampler is grid, but search.space.optim.lr is a range; list its"):
        check_search_space(replace(searching({}), search=replace(TPE, sampler="grid")))


def test_a_batch_too_small_for_cmaes_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="search.ask_batch_size is 2, but search.sampler=cmaes learns from 4 or more at a time"
    ):
        check_search_space(replace(searching({}), search=replace(TPE, sampler="cmaes")))


def test_cmaes_learns_from_what_it_is_told(tmp_path: Path) -> None:
    """The mean of its last learning rates lies nearer to the best one than that of its first."""
    space = {
        "optim.lr": SearchDimension(low=1e-5, high=1e-1, log=True),
        "fusion.dropout": SearchDimension(low=0.0, high=0.9),
    }
    owner = StudyClient(
        SearchConfig(candidates=60, ask_batch_size=6, sampler="cmaes", space=space), NAME, tmp_path / "journal"
    )
    far = []
    for _ in range(60):
        candidate = owner.ask()
        assert candidate
        far.append(abs(math.log10(candidate.changes["optim.lr"]) + 2) + abs(candidate.changes["fusion.dropout"] - 0.8))
        owner.tell(candidate.number, -far[-1])
    assert sum(far[-12:]) < 0.5 * sum(far[:12])


def test_cmaes_is_led_through_a_study_once_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    ask = optuna.Study.ask

    def count(study: optuna.Study, *given: Any, **named: Any) -> optuna.Trial:
        nonlocal asked
        asked += 1
        return ask(study, *given, **named)

    monkeypatch.setattr(optuna.Study, "ask", count)
    of = replace(TPE, sampler="cmaes", ask_batch_size=10, candidates=60)
    search(tmp_path / "journal", of)
    assert asked == 60 + sum(range(0, 60, 10))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_database_keeps_a_study_as_a_journal_does(sampler: Any, tmp_path: Path) -> None:
    of = replace(TPE, sampler=sampler, ask_batch_size=4)
    whole = search(tmp_path / "journal", of)
    url = f"sqlite:///{tmp_path / 'search.db'}"
    first = search(url, of, reported=3)
    rest = search(url, of)
    assert [*first[:3], *rest] == whole and StudyClient(of, NAME, url).completed() == list(range(8))


def test_a_password_is_refused_before_it_is_written_anywhere() -> None:
    with pytest.raises(ConfigError, match="search.storage.*has a secret in the part before the @"):
        override(Experiment(), {"search.storage": "postgresql://me:secret@nowhere/x"})
    override(Experiment(), {"search.storage": "postgresql://me@nowhere:5432/x"})


def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    for url in ("nothing://me@nowhere/x", f"sqlite:///{tmp_path / 'no' / 'folder.db'}"):
        with pytest.raises(ConfigError, match=r"search.storage=\S+ cannot be opened: ") as reported:
            StudyClient(TPE, NAME, url)
        assert "\n" not in str(reported.value)


def test_a_pruned_candidate_is_never_the_best(tmp_path: Path) -> None:
    owner = StudyClient(SearchConfig(candidates=2, ask_batch_size=2, space=SPACE), NAME, tmp_path / "journal")
    for value, pruned in ((0.9, True), (0.1, False)):
        candidate = owner.ask()
        assert candidate
        owner.tell(candidate.number, value, pruned=pruned)
    best = owner.find_best()
    assert best and best[0].number == 1 and owner.completed() == [0, 1]


def test_the_bar_is_the_median_of_earlier_candidates_on_as_many_folds() -> None:
    rows = [{"candidate": c, "fold": f, "s": s} for c, folds in enumerate(SCORED) for f, s in enumerate(folds)]
    pruned = replace(TPE, prune=True)
    assert compute_pruning_thresholds(rows, "s", 3, pruned) == {1: 0.4, 2: pytest.approx(0.55)}
    assert compute_pruning_thresholds(rows, "s", 2, pruned) == {1: pytest.approx(0.3), 2: pytest.approx(0.55)}
    assert compute_pruning_thresholds(rows, "s", 0, pruned) == {}
    assert compute_pruning_thresholds(rows, "s", 3, TPE) == {}


def test_inside_a_fold_the_bar_is_the_median_of_those_who_were_as_far() -> None:
    """The first candidate has both folds, the second was left in its second, the third in its first."""
    rows: list[dict[str, Any]] = [
        {"candidate": 0, "fold": 0, "s": 0.6, "rung_0.25": 0.3, "rung_0.5": 0.4},
        {"candidate": 0, "fold": 1, "s": 0.8, "rung_0.25": 0.4, "rung_0.5": 0.6},
        {"candidate": 1, "fold": 0, "s": 0.5, "rung_0.25": 0.2, "rung_0.5": 0.5},
        {"candidate": 1, "fold": 1, "s": 0.3, "rung_0.25": 0.3, "epochs_share": 0.25},
        {"candidate": 2, "fold": 0, "s": 0.1, "rung_0.25": 0.1, "rung_0.5": math.nan, "epochs_share": 0.25},
    ]
    looked = replace(TPE, rungs=(0.25, 0.5))
    inside = {0.25: 0.2, 0.5: pytest.approx(0.45), 1.25: pytest.approx((0.5 + 0.4) / 2), 1.5: 0.6}
    assert compute_pruning_thresholds(rows, "s", 3, looked) == inside
    ends = {1.0: pytest.approx(0.55), 2.0: pytest.approx(0.7)}
    assert compute_pruning_thresholds(rows, "s", 3, replace(looked, prune=True)) == inside | ends
    e = override(Experiment(), {"search.rungs": [0.25, 0.5]})
    assert make_study_name(e, "d", [], ["k"]) != make_study_name(Experiment(), "d", [], ["k"])
    for bad in ([0.5, 0.25], [0.0], [1.0], [0.5, 0.5]):
        with pytest.raises(ConfigError, match="give shares between 0 and 1 in ascending order"):
            override(Experiment(), {"search.rungs": bad})
    with pytest.raises(ConfigError, match="search.rungs compares fusions on the way"):
        check_search_space(override(e, {"search.mode": "full"}))


SCORED = [[0.4, 0.7], [0.2], [0.5, float("nan")], [9.0, 9.0]]


def test_a_batch_is_suggested_only_when_the_one_before_it_is_told(tmp_path: Path) -> None:
    owner = StudyClient(TPE, NAME, tmp_path / "journal")
    first, second = owner.ask(), owner.ask()
    assert first and second
    assert owner.ask() is None
    owner.tell(second.number, 0.5)
    assert owner.ask() is None
    owner.tell(first.number, 0.5)
    assert owner.ask() is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_fails_and_is_never_the_best(tmp_path: Path, bad: float) -> None:
    owner = StudyClient(SearchConfig(candidates=4, ask_batch_size=4, space=SPACE), NAME, tmp_path / "journal")
    assert owner.find_best() is None
    for value in (bad, -2.0, -1.0, bad):
        candidate = owner.ask()
        assert candidate
        owner.tell(candidate.number, value)
    best = owner.find_best()
    assert best and best[0].number == 2 and best[1] == -1.0
    assert owner.completed() == [0, 1, 2, 3]
    with pytest.raises(StopIteration):
        StudyClient(SearchConfig(candidates=4, ask_batch_size=4, space=SPACE), NAME, tmp_path / "journal").ask()


def test_nothing_is_best_when_everything_failed(tmp_path: Path) -> None:
    owner = StudyClient(SearchConfig(candidates=1, ask_batch_size=1, space=SPACE), NAME, tmp_path / "journal")
    owner.ask()
    owner.tell(0, float("nan"))
    assert owner.find_best() is None


def test_of_equals_the_first_is_best(tmp_path: Path) -> None:
    owner = StudyClient(SearchConfig(candidates=3, ask_batch_size=3, space=SPACE), NAME, tmp_path / "journal")
    for value in (0.1, 0.0, 0.1):
        candidate = owner.ask()
        assert candidate
        owner.tell(candidate.number, value)
    best = owner.find_best()
    assert best and best[0].number == 0


WHOLE = {"fusion.width": SearchDimension(low=64, high=512, log=True), "optim.epochs": SearchDimension(low=2, high=9)}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_range_of_a_whole_number_is_searched_in_whole_numbers(sampler: Any, tmp_path: Path) -> None:
    whole = {**WHOLE, "optim.lr": SPACE["optim.lr"]}
    owner = StudyClient(
        SearchConfig(candidates=6, ask_batch_size=2, sampler=sampler, space=whole), NAME, tmp_path / "journal"
    )
    for _ in range(6):
        candidate = owner.ask()
        assert candidate
        assert [type(v) for v in candidate.changes.values()] == [int, int, float]
        override(Experiment(), candidate.changes | {"fusion.heads": 1})
        owner.tell(candidate.number, candidate.changes["optim.lr"])


def searching(space: dict[str, Any], changes: dict[str, Any] | None = None) -> Experiment:
    experiment = override(Experiment(), {"runtime.workers": 1} | (changes or {}))
    return replace(experiment, search=SearchConfig(space={k: SearchDimension(**v) for k, v in space.items()}))


@pytest.mark.parametrize(
    "space",
    [
        {},
        {"fusion.width": {"choice": [64, 48]}, "fusion.heads": {"choice": [8, 16]}},
        # 12 would not divide with the experiment's own 8 heads, which no candidate has.
        {"fusion.width": {"choice": [12, 24]}, "fusion.heads": {"choice": [1, 2, 4]}},
        {"optim.batch": {"low": 8, "high": 64}, "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True}},
        {"optim.epochs": {"low": 1, "high": 1e9}},
        {"fusion.kind": {"choice": ["shared_attention"]}},
        # Each kind has some of these keys, and only those count.
        {"fusion.kind": {"choice": ["gated", "bottleneck"]}, "fusion.depth": {"choice": [1, 2]}},
    ],
    ids=str,
)
def test_a_space_of_experiments_passes(space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eav_ray.tuning.search_space.MAX_CHECKED_COMBINATIONS", 128)
    check_search_space(searching(space))


def test_a_candidate_has_the_keys_of_its_kind() -> None:
    changes = {"fusion.kind": "gated", "fusion.depth": 1, "fusion.width": 16, "optim.lr": 0.1}
    e = apply_candidate(Experiment(), changes)
    assert e.fusion == GatedConfig(width=16) and e.optim.lr == 0.1
    assert apply_candidate(Experiment(), changes | {"fusion.kind": "bottleneck"}).fusion == BottleneckConfig(
        width=16, depth=1
    )


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"fusion.width": {"choice": [64, 48]}, "fusion.heads": {"choice": [8, 16, 32]}},
            "fusion.width=48 with fusion.heads=32: .*heads is 32, which does not divide width 48",
        ),
        ({"fusion.width": {"low": 64, "high": 512}}, "fusion.width=65: .*does not divide width 65.*as choice"),
        ({"fusion.width": {"low": 64.5, "high": 512}}, "low=64.5 and high=512, but fusion.width is a whole number"),
        ({"fusion.dropout": {"low": 0.1, "high": 1.0}}, "fusion.dropout=1.0: .*less than 1"),
        ({"fusion.widht": {"choice": [64, 48]}}, 'did you mean "fusion.width"'),
        ({"fusion.kind": {"low": 0, "high": 1}}, "use one of .*shared_attention"),
        ({"fusion.kind": {"choice": ["shared_attention", "product"]}}, "product.*take it out of the space"),
        (
            {"fusion.width": {"low": 64, "high": 512}, "fusion.heads": {"low": 1, "high": 64}},
            "does not divide width .*4096 of 28736 combinations were tried",
        ),
    ],
    ids=str,
)
def test_a_combination_that_is_no_experiment_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        check_search_space(searching(space))
    assert "\n" not in str(refused.value)


def test_a_batch_that_the_workers_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="optim.batch=9.*which runtime.workers=2 does not divide"):
        check_search_space(searching({"optim.batch": {"low": 8, "high": 64}}, {"runtime.workers": 2}))


def test_a_search_of_end_to_end_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="train.mode is end_to_end.*set train.mode=staged"):
        check_search_space(searching({}, {"train.mode": "end_to_end"}))


SPLITS = [Split("loso", ("a/1", "b/1"), ("c/1",))]


def named(changes: dict[str, Any] | None = None, data: str = "d", encoders: tuple[str, ...] = ("x", "y")) -> str:
    return make_study_name(override(Experiment(), changes or {}), data, SPLITS, list(encoders))


@pytest.mark.parametrize(
    "changes",
    [
        {"search.space.fusion.heads": {"choice": [1, 2]}},
        {"search.space.optim.lr": {"low": 1e-4, "high": 4e-3, "log": True}},
        {"split.index": 1},
        {"split.protocol": "loso"},
        {"seed": 1},
        {"optim.epochs": 11},
        {"fusion.width": 128},
        {"search.sampler": "random"},
        {"search.ask_batch_size": 3},
        {"name": "other"},
    ],
    ids=str,
)
def test_another_question_is_another_study(changes: dict[str, Any]) -> None:
    assert named(changes) != named()


def test_other_data_splits_or_encoders_are_another_study() -> None:
    other = [Split("loso", ("a/1", "c/1"), ("b/1",))]
    names = {
        named(),
        named(data="e"),
        named(encoders=("x", "z")),
        make_study_name(Experiment(), "d", other, ["x", "y"]),
    }
    assert len(names) == 4


@pytest.mark.parametrize(
    "changes", [{"search.candidates": 99}, {"runtime.workers": 4}, {"store.results": "elsewhere"}], ids=str
)
def test_the_budget_and_the_machines_do_not_make_another_study(changes: dict[str, Any]) -> None:
    assert named(changes) == named()
    assert named(encoders=("y", "x")) == named()


def test_two_studies_share_a_journal_without_mixing(tmp_path: Path) -> None:
    one, other = (StudyClient(TPE, name, tmp_path / "journal") for name in ("one", "other"))
    first, second = one.ask(), other.ask()
    assert first and second and first.number == second.number == 0
    one.tell(0, 0.5)
    assert one.completed() == [0] and other.completed() == []
    assert first.changes != second.changes


def test_the_table_of_trials_is_sorted_by_candidate_and_fold() -> None:
    rows = [{"candidate": c, "fold": f, "value": c + f} for c in (2, 0, 1) for f in (1, 0)]
    table = build_candidates_table(rows)
    assert list(zip(table["candidate"], table["fold"], strict=True)) == [(c, f) for c in (0, 1, 2) for f in (0, 1)]
    assert (table["value"] == table["candidate"] + table["fold"]).all()


def priced(journal: Path | str, of: SearchConfig, *, reported: int | None = None) -> StudyClient:
    """The score rises with the number of heads, and so does the cost; of equal scores the cheaper is better."""
    owner = StudyClient(of, NAME, journal)
    for _ in range(of.candidates if reported is None else reported):
        try:
            candidate = owner.ask()
        except StopIteration:
            break
        assert candidate is not None
        heads, lr = candidate.changes["fusion.heads"], candidate.changes["optim.lr"]
        owner.tell(candidate.number, heads / 10, cost=heads * 100 + lr, pruned=candidate.number % 5 == 4)
    return owner


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_with_a_cost_the_best_are_those_that_no_other_beats_in_both(sampler: Any, tmp_path: Path) -> None:
    of = SearchConfig(candidates=30, ask_batch_size=5, sampler=sampler, space=SPACE, cost="parameters")
    owner = priced(tmp_path / "whole", of)
    ranked = owner.rank()
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True) and set(scores) == {0.1, 0.2, 0.4, 0.8}
    whole = [t for t in range(30) if t % 5 != 4]
    again = StudyClient(of, NAME, tmp_path / "whole")
    assert owner.completed() == list(range(30)) and again.rank() == ranked
    # Of each number of heads, the cheapest is the one on the front.
    assert all(candidate.number in whole for candidate, _ in ranked)
    assert owner.find_best() == ranked[0]
    # Killed after any answer, it goes on as if it had not been.
    priced(tmp_path / "killed", of, reported=13)
    assert priced(tmp_path / "killed", of).rank() == ranked


def test_one_objective_and_two_never_share_a_study() -> None:
    e = Experiment()
    split = [Split("subject_kfold", ("a/1",), ("b/1",))]
    costs: tuple[Any, ...] = ("", "parameters", "gmac")
    names = {make_study_name(override(e, {"search.cost": cost}), "data", split, ["k"]) for cost in costs}
    assert len(names) == 3
    for cut in ({"search.prune": True}, {"search.rungs": [0.5]}):
        with pytest.raises(ConfigError, match="search.cost=gmac keeps cheap candidates"):
            check_search_space(override(e, {"search.cost": "gmac"} | cut))
    with pytest.raises(ConfigError, match="search.sampler is cmaes, which has one objective"):
        check_search_space(override(e, {"search.cost": "gmac", "search.sampler": "cmaes"}))


def test_the_key_that_matters_is_the_important_one(tmp_path: Path) -> None:
    owner = StudyClient(
        SearchConfig(candidates=40, ask_batch_size=10, sampler="random", space=SPACE), NAME, tmp_path / "journal"
    )
    assert owner.compute_importances() == {}
    for _ in range(40):
        candidate = owner.ask()
        assert candidate is not None
        owner.tell(candidate.number, candidate.changes["fusion.heads"] / 10)
    found = owner.compute_importances()
    assert found["fusion.heads"] > 0.9 and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("database", [False, True])
@pytest.mark.parametrize("cost", ["", "parameters"])
def test_optunas_dashboard_opens_what_a_search_leaves(database: bool, cost: Any, tmp_path: Path) -> None:
    of = SearchConfig(candidates=10, ask_batch_size=5, sampler="tpe", space=SPACE, cost=cost)
    url = f"sqlite:///{tmp_path}/search.db"
    owner = priced(url if database else tmp_path / "journal", of, reported=7)
    owner.ask()
    storage = url if database else JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    app = optuna_dashboard.wsgi(storage)

    def get(path: str) -> Any:
        reported: list[str] = []
        asked = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO()}
        body = app(asked, lambda status, headers, *rest: reported.append(status))
        found = b"".join(body)
        assert reported == ["200 OK"]
        return json.loads(found)

    (study,) = get("/api/studies")["study_summaries"]
    assert study["study_name"] == NAME and len(study["directions"]) == 1 + bool(cost)
    states = [trial["state"] for trial in get(f"/api/studies/{study['study_id']}")["trials"]]
    assert states == ["Complete"] * 4 + ["Pruned"] + ["Complete"] * 2 + ["Running"]


def test_scores_that_differ_by_nothing_have_no_important_key(tmp_path: Path) -> None:
    owner = StudyClient(
        SearchConfig(candidates=6, ask_batch_size=6, sampler="random", space=SPACE), NAME, tmp_path / "journal"
    )
    for number in range(6):
        owner.ask()
        owner.tell(number, 0.5 + 1e-12 * number)
    assert owner.compute_importances() == {} or sum(owner.compute_importances().values()) == pytest.approx(1)


def test_a_cost_that_is_no_number_fails(tmp_path: Path) -> None:
    owner = StudyClient(
        SearchConfig(candidates=2, ask_batch_size=2, space=SPACE, cost="gmac"), NAME, tmp_path / "journal"
    )
    owner.ask()
    owner.tell(0, 0.5, cost=math.nan)
    assert owner.completed() == [0] and owner.rank() == []
