# Everything is run from here. The environment in .venv is made on first use and again when its description changes.

PYTHON ?= python3
VENV   := .venv
LOCK   := requirements.lock
# Written last, so that an installation cut short is taken up again.
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin/python
# Only linting needs what npm installs.
NODE_STAMP := node_modules/.installed
REPORT := $(BIN) -m widgets.report
# What the README's figures are made of; what is given after it counts.
MANY   := -p documents 40 -p max_tokens 16384 -p rms True -p certified 512

# The kernel called python3 is this environment's own, whatever the user has registered at home.
export JUPYTER_PREFER_ENV_PATH := 1
unexport JUPYTER_PATH

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo lab evaluate wikitext evidence long train tune bench test test-slow test-browser lint-js test-js check format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## read one document; a report in runs/quickstart (DEMO="-p max_tokens 1024" sets parameters)
	$(REPORT) notebooks/00_quickstart.ipynb runs/quickstart $(DEMO)

lab: $(STAMP)  ## JupyterLab on notebooks/
	$(BIN) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks

evaluate: $(STAMP)  ## the README's figures, on the test split; a report in runs/evaluation (EVALUATE="-p documents 5")
	$(REPORT) notebooks/04_compare_readers.ipynb runs/evaluation $(MANY) $(EVALUATE)

wikitext: $(STAMP)  ## the same figures on WikiText articles: make wikitext WIKITEXT=path/to/wiki.valid.tokens
	@test -n "$(WIKITEXT)" || { echo 'error: which articles? make wikitext WIKITEXT=path/to/wiki.valid.tokens' >&2; exit 1; }
	$(REPORT) notebooks/04_compare_readers.ipynb runs/wikitext -p corpus wikitext -p path "$(WIKITEXT)" $(MANY) $(EVALUATE)

evidence: $(STAMP)  ## one update by hand, Δθ over a document, receipts and surgery; reports in runs/
	$(REPORT) notebooks/01_anatomy_of_an_update.ipynb runs/anatomy
	$(REPORT) notebooks/02_read_a_document.ipynb runs/document
	$(REPORT) notebooks/03_receipts_and_surgery.ipynb runs/receipts

long: $(STAMP)  ## one document of a million tokens: gain, time and memory; a report in runs/long_document (LONG="-p path my_texts", RUN=another/folder)
	$(REPORT) notebooks/long_document.ipynb $(or $(RUN),runs/long_document) $(LONG)

train: $(STAMP)  ## train a model; it and a report in runs/train (TRAIN="-p mode retrofit -p steps 1000", RUN=another/folder)
	$(REPORT) notebooks/train.ipynb $(or $(RUN),runs/train) $(TRAIN)

tune: $(STAMP)  ## choose dynamic evaluation's rule for a model; both in runs/tune (TUNE="-p model runs/train/model")
	$(REPORT) notebooks/tune.ipynb $(or $(RUN),runs/tune) $(TUNE)

bench: $(STAMP)  ## what reading and learning cost; a table, and runs/bench.json (BENCH="--models bundled")
	$(BIN) -m fwl_lab.profiling.benchmark runs/bench.json $(BENCH)

test: $(STAMP)  ## the core tests: no network, no GPU, two to three minutes on two cores (PYTEST="-k trace" narrows)
	OMP_NUM_THREADS=1 $(BIN) -m pytest -n auto -m "not slow and not browser and not gpu" $(PYTEST)

test-slow: $(STAMP)  ## the tests that take seconds to a minute each: five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN) -m pytest -n auto -m "slow and not browser and not gpu" $(PYTEST)

test-browser: $(STAMP)  ## the views in JupyterLab and headless Chromium; pictures and budgets in runs/browser
	OMP_NUM_THREADS=1 $(BIN) -m pytest tests/browser -m browser $(PYTEST)

lint-js: $(NODE_STAMP)  ## ESLint on the browser's side (needs node)
	npx --no-install eslint --max-warnings 0 .

test-js:  ## the browser's pure functions, in node alone: no browser, nothing installed
	node --test tests/js/*.test.js

check: $(STAMP)  ## linter, formatter, types, core tests: the first part of .ci/run
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy
	@$(MAKE) --no-print-directory test

format: $(STAMP)  ## let the linter and the formatter rewrite the code
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

clean:  ## remove caches and built packages (runs/, .venv and node_modules stay)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find fwl_lab widgets notebooks tests -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

# A link to an interpreter that has since been removed counts as missing: the environment is then made afresh.
$(BIN):
	@command -v "$(PYTHON)" >/dev/null || { echo 'error: no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit("error: $(PYTHON) is Python " + v + ", 3.11 or newer is needed; name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	"$(PYTHON)" -m venv --clear $(VENV)

# The build backend comes from the lock as well (no isolated build), so that nothing unpinned is fetched.
$(STAMP): $(BIN) $(LOCK) pyproject.toml
	$(BIN) -m pip install --disable-pip-version-check --requirement $(LOCK)
	$(BIN) -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Scripts of packages are not run. The lock file names no registry, so that any mirror serves.
$(NODE_STAMP): package.json package-lock.json
	npm ci --ignore-scripts --no-audit --no-fund
	@touch $@
