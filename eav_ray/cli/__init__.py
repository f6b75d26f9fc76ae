"""The command `eav`: parse the command line, call one pipeline, print what came of it.

Nothing heavy is imported before a command line is known to be right: commands import their pipelines when they run.
"""
