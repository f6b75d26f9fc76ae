"""Corrupt a checkpoint's test recordings in steps, before preprocessing, and see what is left of its accuracy.

python jobs/robustness.py best data.root=/data/EAV
python jobs/robustness.py best data.root=/data/EAV --modalities eeg,audio --severity-levels 5 --corruptions pink

--modalities: which to corrupt, one at a time, then all together. --corruptions: of which kinds, such as
pink,babble,eeg.dropout. --severity-levels: in how many steps each. --all: all recordings of the data root, which may be
another data set of the same classes. --out: the results store, as store.results names it.
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.run_command import run_command
from eav_ray.config.paths import resolve_user_path
from eav_ray.errors import ConfigError
from eav_ray.pipelines.evaluate.robustness import RobustnessOptions, run_robustness


def main(arguments: Arguments) -> None:
    if len(arguments.paths) != 1:
        raise ConfigError("give exactly one checkpoint folder; jobs/train.py and jobs/pull.py print its path")
    flags, changes = arguments.flags, dict(arguments.changes)
    store = str(changes.pop("store.results", "results"))
    out = resolve_user_path("--out" if "out" in flags else "store.results", flags.get("out") or store)
    modalities, kinds = (tuple(filter(None, flags.get(f, "").split(","))) for f in ("modalities", "corruptions"))
    request = RobustnessOptions(modalities, arguments.parse_count("severity-levels", 3), kinds, "all" in flags)
    print(run_robustness(arguments.paths[0], changes, request, out).text)


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("modalities", "severity-levels", "corruptions", "all!", "out"))
