"""Commands: parse the command line, call one pipeline, print what came of it."""
