"""Speed and effect, measured: each program ends with one line per goal and writes docs/results/<name>.md."""
