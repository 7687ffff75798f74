# Two commands for newcomers: `make reproduce` and `make test`. Everything else is a convenience.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' if sys.version_info[:2] == (3, 11) else '')")  # the lock was made on 3.11
PROFILE ?= demo
OUT ?= reports/local
NOTEBOOK ?= celeba
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce plan test test-slow test-gpu lab export readme install clean

# a plan is among the first things that a notebook prints; its line is brought to the top. SHELL: a failing papermill must fail make
SHELL := /bin/bash
FIRST := awk '!said && /^plan:/ {print; printf "%s", held; said = 1; fflush(); next} !said {held = held $$0 "\n"; next} {print; fflush()} END {if (!said) printf "%s", held}'

# folders of data sets, as far as the notebook knows them: DATA (the set that is measured), PARSING (Helen or LIP), CELEBA (where LFWA starts from), LFWA
# (the small set of abstraction, blan, pse, general_to_specific); WEIGHTS="pse=FILE general_to_specific=FILE", or scratch
reproduce: install  ## the papers' tables on synthetic faces, or on your data: DATA=/path/to/CelebA PARSING=/path/to/Helen PROFILE=paper
	@mkdir -p $(OUT)
	@set -o pipefail; SYMBIOSIS_QUIET=1 $(BIN)/papermill nbs/reproduce_$(NOTEBOOK).ipynb $(OUT)/$(NOTEBOOK).ipynb -k python3 --log-output --no-progress-bar \
	  -p out "$(abspath $(OUT))" -p profile $(PROFILE) $(if $(DATA),-p data_root "$(abspath $(DATA))") \
	  $(if $(PARSING),-p parsing_root "$(abspath $(PARSING))") $(if $(CELEBA),-p celeba_root "$(abspath $(CELEBA))") \
	  $(if $(LFWA),-p lfwa_root "$(abspath $(LFWA))") $(if $(WEIGHTS),-p weights "$(WEIGHTS)") $(ARGS) 2>&1 | $(FIRST)
	@echo "report: $(OUT)/$(NOTEBOOK).html    executed notebook: $(OUT)/$(NOTEBOOK).ipynb"

plan: ARGS += -p plan_only True
plan: reproduce  ## what `make reproduce` would cost with the same DATA and PROFILE: hours, disk, memory; nothing is trained

test: install  ## hygiene, notebooks, pytest
	$(BIN)/nbdev_test --n_workers 2 --timing
	SYMBIOSIS_QUIET=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not data"

test-slow: install  ## what takes longer than 20 seconds each; also the lowest releases, Python 3.10 and 3.13 (some gigabytes, 40 minutes)
	SYMBIOSIS_QUIET=1 $(BIN)/python -m pytest -q -m "slow and not gpu and not data"

test-gpu: install  ## what a GPU may do otherwise; writes reports/gpu.csv. SYMBIOSIS_TEST_DEVICE=cpu runs it without one
	SYMBIOSIS_QUIET=1 $(BIN)/python -m pytest -q tests/gpu

lab: install  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

export: install  ## notebooks to library, cleaned; README from the index notebook
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean --fname nbs
	$(MAKE) readme

readme: install  ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert nbs/index.ipynb --to markdown --TemplateExporter.exclude_raw=True --output-dir . --output README \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=remove_cell --TagRemovePreprocessor.remove_input_tags=remove_input \
	  --NbConvertApp.output_files_dir=nbs/images

install: $(VENV)/installed  ## modules are compiled when first imported: most never are, and pip would take a minute for them

$(VENV)/installed: settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile $(CONSTRAINTS) torch torchvision
	$(BIN)/python -m pip install -q --no-compile $(CONSTRAINTS) -e ".[dev]"
	touch $@

clean:  ## generated files in the working tree; the cache folder stays
	rm -rf $(OUT) build dist *.egg-info .pytest_cache .hypothesis
