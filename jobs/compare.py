"""Run `eav compare` as a job, with the same words: `ray job submit ... -- python3 jobs/compare.py ...`."""

from eav_ray.cli.interpreter import use_own_interpreter

if __name__ == "__main__":
    use_own_interpreter()
    from eav_ray.cli.main import main

    main("compare")
