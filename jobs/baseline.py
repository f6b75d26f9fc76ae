"""Run `eav baseline` as a job, with the same words: `ray job submit ... -- python jobs/baseline.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("baseline")
