"""Run `eav adapt` as a job, with the same words: `ray job submit ... -- python jobs/adapt.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("adapt")
