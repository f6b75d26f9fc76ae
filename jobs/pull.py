"""Run `eav pull` as a job, with the same words: `ray job submit ... -- python jobs/pull.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("pull")
