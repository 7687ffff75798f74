# Two commands for newcomers: `make reproduce` and `make test`. Everything else is a convenience.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('-c constraints.txt' if sys.version_info[:2] == (3, 11) else '')")  # the lock was made on 3.11
PROFILE ?= demo
OUT ?= reports/local
NOTEBOOK ?= celeba
export OMP_WAIT_POLICY := PASSIVE

.PHONY: reproduce plan demo test test-slow test-gpu test-lab lab docs export readme install clean

# a plan is among the first things that a notebook prints; its line is brought to the top. SHELL: a failing papermill must fail make. Not awk: mawk waits for whole blocks
SHELL := /bin/bash
FIRST := $(BIN)/python scripts/plan_first.py

# folders of data sets, as far as the notebook knows them: DATA (the set that is measured), PARSING (Helen or LIP), CELEBA (where LFWA starts from), LFWA
# (the small set of abstraction, blan, pse, general_to_specific); WEIGHTS="pse=FILE general_to_specific=FILE", or scratch
# drawn faces without a GPU: a run for every core at once, one thread each, since small networks gain little from a second; ARGS="-p executor ''" trains one after another
ABREAST := $(if $(DATA)$(shell command -v nvidia-smi),,yes)
reproduce: install  ## the papers' tables on synthetic faces, or on your data: DATA=/path/to/CelebA PARSING=/path/to/Helen PROFILE=paper
	@mkdir -p $(OUT)
	@set -o pipefail; SYMBIOSIS_QUIET=1 $(if $(ABREAST),OMP_NUM_THREADS=1) $(BIN)/papermill nbs/reproduce_$(NOTEBOOK).ipynb $(OUT)/$(NOTEBOOK).ipynb -k python3 --log-output --no-progress-bar \
	  -p out "$(abspath $(OUT))" -p profile $(PROFILE) $(if $(ABREAST),-p executor local) $(if $(DATA),-p data_root "$(abspath $(DATA))") \
	  $(if $(PARSING),-p parsing_root "$(abspath $(PARSING))") $(if $(CELEBA),-p celeba_root "$(abspath $(CELEBA))") \
	  $(if $(LFWA),-p lfwa_root "$(abspath $(LFWA))") $(if $(WEIGHTS),-p weights "$(WEIGHTS)") $(ARGS) 2>&1 | $(FIRST)
	@echo "report: $(OUT)/$(NOTEBOOK).html    executed notebook: $(OUT)/$(NOTEBOOK).ipynb"

plan: ARGS += -p plan_only True
plan: reproduce  ## what `make reproduce` would cost with the same DATA and PROFILE: hours, disk, memory; nothing is trained

# gradio asks for an older Pillow than the lock has: it lives in an environment of its own, which sees this one's packages behind its own
DEMO := $(VENV)-demo
PLACE := import sysconfig; print(sysconfig.get_path("purelib"))

demo: install  ## a page to drop photographs on: RUN=FOLDER of a finished run; without one a small run on drawn faces is trained, or read
	@test -x $(DEMO)/bin/python || $(BIN)/python -m venv $(DEMO)
	@$(BIN)/python -c '$(PLACE)' > "$$($(DEMO)/bin/python -c '$(PLACE)')/library.pth"
	@$(DEMO)/bin/python -m pip install -q --no-compile "$(shell sed -n 's/^demo_requirements = //p' settings.ini)"
	PYTHONPATH="$(CURDIR)" $(DEMO)/bin/python -c "from symbiosis_nb.demo import main; main()" $(if $(RUN),--run "$(abspath $(RUN))") $(ARGS)

test: install  ## hygiene, notebooks, pytest
	$(BIN)/nbdev_test --n_workers 2 --timing
	SYMBIOSIS_QUIET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu and not data"

test-slow: install  ## what takes longer than 20 seconds each; also the lowest releases, Python 3.10 and 3.13 (some gigabytes, 40 minutes)
	SYMBIOSIS_QUIET=1 $(BIN)/python -m pytest -q -m "slow and not gpu and not data"   # the browser's are skipped without chromium: make test-lab

lab: install  ## JupyterLab on the whole checkout, so that the notebooks' links lead to reports; opens index
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs/index.ipynb $(ARGS)

test-lab: install  ## JupyterLab and the report page in a real browser: needs Debian's chromium (apt-get install chromium)
	$(BIN)/python -m pip install -q --no-compile -e ".[lab]"
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -q tests/test_lab.py tests/test_page_browser.py

test-gpu:  ## what a GPU may do otherwise, under ten minutes; writes reports/gpu.csv. SYMBIOSIS_TEST_DEVICE=cpu does without one; PYTHON needs torch, no installation
	PYTHONPATH="$(CURDIR)" SYMBIOSIS_QUIET=1 $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -q tests/gpu

docs: install  ## the documentation site, in _docs
	$(BIN)/python -m pip install -q --no-compile -e ".[docs]"
	$(BIN)/python scripts/docs.py _docs

export: install  ## notebooks to library, cleaned; README from the index notebook
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean --fname nbs
	$(MAKE) readme

readme: install  ## README.md from nbs/index.ipynb
	$(BIN)/python scripts/readme.py .

install: $(VENV)/installed  ## modules are compiled when first imported: most never are, and pip would take a minute for them

$(VENV)/installed: settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile $(CONSTRAINTS) torch torchvision
	$(BIN)/python -m pip install -q --no-compile $(CONSTRAINTS) -e ".[dev]"
	@# once, by all cores: where Python may not write bytecode, every process would spend ten seconds on imports; some packages carry files of other Pythons
	-@$(BIN)/python -m compileall -qq -j 0 "$$($(BIN)/python -c '$(PLACE)')" || true
	touch $@

clean:  ## generated files in the working tree; the cache folder stays
	rm -rf $(OUT) build dist *.egg-info .pytest_cache .hypothesis
