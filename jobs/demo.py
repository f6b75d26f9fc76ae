"""Run `eav demo` as a job, with the same words: `ray job submit ... -- python jobs/demo.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("demo")
