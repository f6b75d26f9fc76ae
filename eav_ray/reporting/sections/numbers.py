"""Sections of the results page on predicted numbers: scores, recordings, subjects, paired comparisons, seeds."""

from typing import Any

from eav_ray.evaluation.number_scores import CONSTANT_SOURCE
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import number_figures
from eav_ray.reporting.formatting import TEST_COLUMNS, apply_format, format_interval
from eav_ray.reporting.html import Column, Drawing, Folded, Note, Part, Picture, Section, build_table
from eav_ray.reporting.number_tables import (
    describe_level,
    format_correlation,
    format_error,
    list_score_columns,
    list_score_notes,
    list_score_rows,
)
from eav_ray.words import format_count

MAX_DRAWN_POINTS = 2_000  # recordings of all targets that are drawn one by one; more become pixels
SCORES_NOTE = (
    "CCC: Lin's concordance correlation coefficient, which is 1 only where every number is right, and falls with a "
    "wrong place or spread as well as with a wrong order. Pearson's correlation sees the order and spacing alone. "
    "RMSE: the root of the mean squared error, in the unit of the target. A constant prediction has a CCC of 0; "
    "constant is that of the mean of the targets that were trained on, whose RMSE is what a model has to beat."
)
INTERVALS_NOTE = (
    "Intervals over people by Student's t: of CCC and Pearson on Fisher's z scale, of RMSE on the scale of logarithms."
)
BETWEEN_NOTE = (
    "Between people: the means of each person's predicted and true numbers. It asks whether people are told apart. "
    "A constant prediction of a protocol that holds whole people out goes against them: who has a high score is "
    "missing from the mean that predicts it, so that its Pearson is far below 0 and its CCC a little."
)
CLAIM_NOTE = (
    "To help, a trained fusion has to beat the best single modality and mean, the mean of what the modalities predict, "
    "by CCC, or by RMSE where no person's targets differ. The best modality is chosen on these recordings, which makes "
    "the bar higher."
)


def describe_number_result(results: ResultsTree) -> str:
    """Say the result in one sentence: the main source of each target beside a constant prediction."""
    scores, parts = results["scores"], []
    main_source = find_main_source(results)
    for name, target in scores["targets"].items():
        main = target["sources"][main_source]
        own, constant = main[target["level"]], target["sources"].get(CONSTANT_SOURCE)
        interval = own["ccc"]["interval"]
        bounds = "no interval" if None in interval else f"95 % {format_interval(interval, format_correlation)}"
        part = (
            f"{name}: CCC {format_correlation(own['ccc']['mean'])} ({bounds}) {target['level']} people "
            f"({own['n_subjects']}), RMSE {format_error(main['rmse']['mean'])}"
        )
        if constant is not None:
            part += f" against {format_error(constant['rmse']['mean'])} of a constant prediction"
        parts.append(part + (" (the interval of its CCC holds 0)" if main["within_chance"] else ""))
    return (
        f"{main_source}, {'; '.join(parts)}. Over {format_count(scores['recordings'], 'recording')} of "
        f"{format_count(scores['n_subjects'], 'person')} "
        f"{results['separation']}; access to them {results['access']['level']}."
    )


def find_main_source(results: ResultsTree) -> str:
    """Find the source that a page is about: the fusion, or the only modality."""
    first = next(iter(results["scores"]["targets"].values()))
    return list(first["sources"])[-1]


def build_scores(results: ResultsTree) -> Section:
    """Build the table of each target and source."""
    scores = results["scores"]
    parts: list[Part] = []
    for name, target in scores["targets"].items():
        columns: list[Column] = [("source", "source", ""), *list_score_columns(with_sd=target["level"] == "within")]
        parts.append(build_table(list_score_rows(target), columns, title=name))
        sentences = [f"{name}, {describe_level(target, scores['n_subjects'])}.", _describe_spread(target)]
        sentences += [f"{_capitalize(note)}." for note in list_score_notes(target)]
        parts.append(Note(" ".join(sentences)))
        if target["level"] == "within" and scores["n_subjects"] > 1:
            between = list_score_rows({**target, "level": "between"})
            title = f"{name}: between people"
            parts.append(Folded(title, build_table(between, [("source", "source", ""), *_list_between_columns()])))
    parts += [Note(f"{SCORES_NOTE} {INTERVALS_NOTE}"), Note(BETWEEN_NOTE)]
    parts.append(Note(f"Access to tested subjects: {results['access']['description']}."))
    return Section("Scores", parts)


def _list_between_columns() -> list[Column]:
    return [column for column in list_score_columns(with_sd=False) if not column[1].startswith("rmse")]


def _describe_spread(target: ResultsTree) -> str:
    spread = target["spread"]
    if spread is None:
        return "No recording has a target."
    low, high, mean, sd = (format_error(spread[key]) for key in ("low", "high", "mean", "sd"))
    known = format_count(target["n_known"], "recording")
    return f"The true numbers of {known} lie from {low} to {high}, mean {mean}, SD {sd}."


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def build_points(results: ResultsTree) -> Section:
    """Build the scatter of predicted against true numbers of the main source."""
    points = results["points"]
    figure = number_figures.plot_points(points)
    sentences, main_source = [], find_main_source(results)
    for name, target in results["scores"]["targets"].items():
        calibration = target["sources"][main_source]["calibration"]
        sentences.append(
            f"{name}: slope of true on predicted numbers {apply_format(calibration['slope'], '.2f')}, bias "
            f"{apply_format(calibration['bias'], '+.3g')}"
        )
    caption = (
        f"What {main_source} predicts of each recording against the truth, a colour a person, of "
        f"{', '.join(points)}; the line is where both are equal."
    )
    n_points = sum(len(rows) for rows in points.values())
    drawing = (Drawing if n_points <= MAX_DRAWN_POINTS else Picture)(figure, caption)
    note = (
        f"{'; '.join(sentences)}. Over all recordings. A slope of 1 and a bias of 0 are right: below 1 predictions are "
        "spread too far, above 1 too little; the bias is predicted less true."
    )
    return Section("Predicted against true", [drawing, Note(note)])


def build_number_subjects(results: ResultsTree) -> Section:
    """Build a figure and a table of subjects for each target."""
    parts: list[Part] = []
    for name, rows in results["subjects"].items():
        target = results["scores"]["targets"][name]
        sources = [s for s in target["sources"] if s != CONSTANT_SOURCE]
        measure = "ccc" if target["level"] == "within" else "rmse"
        n_people = format_count(len(rows), "person")
        caption = f"{name}: {number_figures.TITLES[measure]} of {sources[-1]} of {n_people}, the best first."
        parts.append(Drawing(number_figures.plot_number_subjects(rows, sources, measure), caption))
        parts.append(Folded(f"{name}: all people", build_table(map(_flatten, rows), _list_subject_columns(sources))))
    return Section("People", parts)


def _flatten(row: ResultsTree) -> dict[str, Any]:
    nested = {s: one for s, one in row.items() if isinstance(one, dict)}
    flat = {f"{source} {measure}": value for source, one in nested.items() for measure, value in one.items()}
    return {key: value for key, value in row.items() if key not in nested} | flat


def _list_subject_columns(sources: list[str]) -> list[Column]:
    main = sources[-1]
    return [
        ("subject", "subject", ""),
        ("recordings", "recordings", ""),
        *((f"{s}: CCC", f"{s} ccc", format_correlation) for s in sources),
        (f"{main}: Pearson", f"{main} pearson", format_correlation),
        *((f"{s}: RMSE", f"{s} rmse", format_error) for s in sources),
        (f"{main}: bias", f"{main} bias", "+.3g"),
    ]


def build_number_comparisons(results: ResultsTree) -> Section | None:
    """Build the paired comparisons of each measure, and whether the fusion helps."""
    parts: list[Part] = []
    for table in results["comparisons"]["tables"]:
        form = "+.3f" if table["measure"] == "ccc" else "+.3g"
        columns: list[Column] = [
            ("target", "target", ""),
            ("difference", "pair", ""),
            ("people", "n_subjects", ""),
            ("better by", "difference", form),
            ("95 % interval", "interval", lambda pair, form=form: format_interval(pair, form)),
            *TEST_COLUMNS,
        ]
        rows = [one | {"pair": f"{one['ours']} – {one['other']}"} for one in table["rows"]]
        title = f"{table['title']}, by {number_figures.TITLES[table['measure']]}"
        parts.append(build_table(rows, columns, left=True, title=title))
    if not parts:
        return None
    claims = " ".join(f"{one['text']}." for one in results["comparisons"]["claims"])
    note = Note(
        "Better by: a positive number is in favour of the first of the two, a higher CCC or a lower RMSE (in the unit "
        "of the target). Paired over people, each with the recordings that both have a prediction of: Wilcoxon's "
        "signed-rank test, exact, two-sided, from 6 people on, Holm's correction within each table; intervals by "
        "Student's t over people."
    )
    return Section("Comparisons", [f"{claims} {CLAIM_NOTE}", *parts, note])


def build_number_seeds(results: ResultsTree) -> Section:
    """Build the table of trainings that differ by their seed."""
    rows = [
        {"target": one["target"], "source": one["source"], "score": number_figures.TITLES[one["measure"]]}
        | {name: _format_score(value, one["measure"]) for name, value in {**one["means"], "sd": one["sd"]}.items()}
        for one in results["seeds"]["rows"]
    ]
    seeds: list[Column] = [(str(seed), str(seed), "") for seed in results["seeds"]["seeds"]]
    columns: list[Column] = [("target", "target", ""), ("source", "source", ""), ("score", "score", ""), *seeds]
    note = Note("Trainings that differ by their seed alone. A difference below this spread is noise.")
    return Section("Seeds: the noise floor", [build_table(rows, [*columns, ("SD", "sd", "")]), note])


def _format_score(value: float | None, measure: str) -> str:
    return format_correlation(value) if measure == "ccc" else format_error(value)
