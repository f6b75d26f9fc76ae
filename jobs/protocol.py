"""Run `eav protocol` as a job, with the same words: `ray job submit ... -- python jobs/protocol.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("protocol")
