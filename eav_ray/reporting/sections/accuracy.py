"""Sections of the results page on accuracy: sources, subjects, paired comparisons, seeds."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import PUBLISHED_LABEL, TEST_COLUMNS, format_interval, format_percent, format_points
from eav_ray.reporting.html import Drawing, Note, Part, Section, build_table
from eav_ray.words import format_count

CLAIM_NOTE = (
    "To help, a trained fusion has to beat the best single modality and the better of the two rules that train "
    "nothing, mean_probability and product. Both are chosen on these recordings, which makes the bar higher."
)
UNIT_COLUMNS = [(f"per {unit}", unit, format_percent) for unit in ("frame", "window", "recording")]


def build_accuracy(results: ResultsTree) -> Section:
    accuracy = results["accuracy"]
    sources, chance = accuracy["sources"], accuracy["chance"]
    columns = [
        ("source", "source", ""),
        ("mean", "mean", format_percent),
        ("SD over people", "sd", format_percent),
        ("95 % interval", "interval", format_interval),
        ("balanced", "balanced", format_percent),
        ("95 % interval", "balanced_interval", format_interval),
        ("macro-F1", "macro_f1", format_percent),
        *UNIT_COLUMNS,
    ]
    n_subjects = accuracy["n_subjects"]
    intervals = (
        f"intervals by Student's t over {format_count(n_subjects, 'person')}, each with the mean of their recordings"
    )
    if n_subjects == 1:
        intervals = "no intervals: recordings of one person say nothing of other people"
    sentences = [
        f"Percent. Mean and SD over people; {intervals} ({accuracy['recordings']} in all). Balanced: the mean over "
        f"classes of their recall, which is the mean over people. Chance is {format_percent(chance['level'])}; "
        f"guessing stays between {format_percent(chance['low'])} and {format_percent(chance['high'])} in "
        f"{100 * chance['band']:.1f} % of the cases (binomial over recordings)."
    ]
    sentences.append(f"Access to tested subjects: {results['access']['description']}.")
    if accuracy["unequal"]:
        sentences.append(
            "Classes are unequal, so naming the largest one beats chance: read the balanced columns, in which "
            f"guessing stays between {format_percent(chance['balanced_low'])} and "
            f"{format_percent(chance['balanced_high'])} as often."
        )
    n_missing = {s: one["n_without_prediction"] for s, one in sources.items()}
    if missing := [f"{n} of {s}" for s, n in n_missing.items() if n]:
        sentences.append(f"Recordings in which a source has nothing to say count as wrong: {', '.join(missing)}.")
    if within_chance := [s for s, one in sources.items() if one["inside_chance"]]:
        sentences.append(f"Inside the band of chance: {', '.join(within_chance)}.")
    if accuracy.get("oracle") is not None:
        sentences.append(
            f"An oracle that always heeds a right modality would reach {format_percent(accuracy['oracle'])}."
        )
    if results.get("stacking_note"):
        sentences.append(results["stacking_note"])
    table = build_table([{"source": s, **one} for s, one in sources.items()], columns)
    return Section("Accuracy", [table, Note(" ".join(sentences))])


def build_single_class(results: ResultsTree) -> Section:
    table = build_table(results["single_class"], [("fold", "fold", ""), ("finding", "text", "")], left=True)
    note = Note("Such a model is as accurate as its class is frequent, and its balanced accuracy that of guessing.")
    return Section("One class for nearly all", [table, note])


def build_subjects(results: ResultsTree) -> Section:
    rows, sources = results["subjects"], list(results["accuracy"]["sources"])
    has_reference, main_source = any("reference" in r for r in rows), sources[-1]
    columns = [("subject", "subject", ""), ("recordings", "recordings", ""), *((s, s, format_percent) for s in sources)]
    caption = (
        f"{main_source} of {format_count(len(rows), 'person')}, from {format_percent(rows[0][main_source])} to "
        f"{format_percent(rows[-1][main_source])} %."
    )
    if has_reference:
        # What the bars are: one modality is held against the same one.
        column = figures.choose_published_column(sources)
        columns.append((f"{PUBLISHED_LABEL} {column}", "reference", lambda row: format_percent(row[column])))
        caption += f" {PUBLISHED_LABEL.capitalize()}: per frame, under the protocol paper."
    figure = figures.plot_subjects(rows, sources, results["chance_of_subject"], published=has_reference)
    return Section("People", [Drawing(figure, caption), build_table(rows, columns)])


def build_comparisons(results: ResultsTree) -> Section | None:
    columns = [
        ("difference", "pair", ""),
        ("people", "n_subjects", ""),
        ("points", "difference", format_points),
        ("95 % interval", "interval", lambda pair: format_interval(pair, format_points)),
        *TEST_COLUMNS,
    ]
    tables = []
    for name, title in (("fusion", "The fusion against the rest"), ("modalities", "Modalities against each other")):
        if rows := [c | {"pair": f"{c['ours']} – {c['other']}"} for c in results["comparisons"][name]]:
            tables.append(build_table(rows, columns, left=True, title=title))
    if not tables:
        return None
    note = Note(
        "Paired over people: Wilcoxon's signed-rank test, exact, two-sided, from 6 people on, Holm's correction within "
        "each table; intervals by Student's t over people. People wanted: with so many a difference of this size would "
        "be found with a power of 0.8 (one comparison, two-sided 0.05). The best single modality per subject is chosen "
        "with its test labels, so it is an upper bound that no honest choice reaches."
    )
    claim, rescue = results["comparisons"]["claim"], results["comparisons"]["rescue"]
    return Section(
        "Comparisons", [f"{_capitalize(claim['text'])}. {CLAIM_NOTE}", *tables, note, *_build_rescue(rescue)]
    )


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _build_rescue(rescue: ResultsTree) -> list[Part]:
    single = rescue["best_single"]
    columns = [
        ("source", "source", ""),
        ("rescued", "rescued", ""),
        ("rescued, %", "rescued_share", format_percent),
        ("lost", "lost", ""),
        ("lost, %", "lost_share", format_percent),
    ]
    title = f"Recordings that {single} gets wrong, and what becomes of them"
    note = Note(
        f"{single} is the best single modality, chosen on these very recordings. It gets {rescue['n_wrong']} of them "
        f"wrong and {rescue['n_right']} right. Rescued: right where it is wrong, as a share of the wrong ones. Lost: "
        "wrong where it is right, as a share of the right ones. Recordings are counted, not people."
    )
    return [build_table([{"source": s, **one} for s, one in rescue["sources"].items()], columns, title=title), note]


def build_seeds(results: ResultsTree) -> Section:
    seeds = [(str(seed), str(seed), format_percent) for seed in results["seeds"]["seeds"]]
    rows = [{"source": s, "sd": one["sd"], **one["means"]} for s, one in results["seeds"]["sources"].items()]
    note = Note("Trainings that differ by their seed alone. A difference below this spread is noise.")
    table = build_table(rows, [("source", "source", ""), *seeds, ("SD", "sd", format_percent)])
    return Section("Seeds: the noise floor", [table, note])
