"""Run `eav ablate` as a job, with the same words: `ray job submit ... -- python jobs/ablate.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("ablate")
