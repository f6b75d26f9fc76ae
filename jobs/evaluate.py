"""Run `eav evaluate` as a job, with the same words: `ray job submit ... -- python jobs/evaluate.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("evaluate")
