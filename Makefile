# Every target works from a fresh clone: `setup` makes .venv with plain pip and is skipped while it is current.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# CPU=1: a torch without CUDA, 1.7 instead of 5.4 GB. The environment remembers it; `make setup CPU=` goes back.
CPU ?= $(if $(wildcard $(VENV)/.current-cpu),1)
STAMP := $(VENV)/.current$(if $(CPU),-cpu)
CONSTRAINTS := $(if $(CPU),constraints-newest.txt,constraints.txt)
EXTRAS := $(if $(CPU),dev,dev,decode)
NEWEST := .venv-newest
# Two test processes with a thread each use two cores better than threads that wait for one another.
export OMP_NUM_THREADS ?= 1
export HYDRA_FULL_ERROR ?= 0
INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo study study-name learn docs check test test-newest test-long test-mutants clean help
help: ## What the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(STAMP) ## Virtual environment with the pinned torch pair; CPU=1: a small one without CUDA
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages (about three minutes the first time)"
	@$(if $(CPU),$(BIN)/python -m pip uninstall --quiet --yes torchaudio 2>/dev/null)
	@$(BIN)/python $(INSTALL) -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	@# Microsoft's and fairseq's own models, for the parity tests: what s3prl itself depends on is not needed.
	@$(BIN)/python $(INSTALL) -c $(CONSTRAINTS) --no-deps s3prl \
		|| echo "s3prl cannot be installed here: tests against the original code will be skipped"
	@rm -f $(VENV)/.current $(VENV)/.current-cpu
	@touch $(STAMP)

$(NEWEST)/.current: pyproject.toml constraints-newest.txt
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python $(INSTALL) -c constraints-newest.txt -e '.[hf]'
	@touch $@

check: $(STAMP) ## Lint, types, floors, unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 -m "not long" tests/unit

test: $(STAMP) ## All fast tests
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long" tests/learning tests/smoke tests/parity tests/unit

test-newest: $(STAMP) $(NEWEST)/.current ## Shards to Transformers with the newest torch, in an environment of its own
	$(BIN)/python tests/second_environment.py $(NEWEST)/bin/python

demo: $(STAMP) ## The whole job on synthetic voices, on a CPU
	@$(BIN)/openwavlm iterate --config-name demo

study: study-name $(STAMP) ## NAME=learn, mixing, or downstream data=DIR: paired comparisons over seeds (about an hour each); the same command resumes it
	@$(BIN)/python studies/$(NAME).py $(if $(data),"input=$(data)") $(if $(demo),"demo=$(demo)")

study-name: # refused before anything is installed
	@test -f "studies/$(NAME).yaml" || { echo "error: NAME must be learn, mixing or downstream, but is '$(NAME)': make study NAME=mixing" >&2; exit 2; }

learn: # the name of `make study NAME=learn` in earlier pages
	@$(MAKE) --no-print-directory study NAME=learn

test-long: $(STAMP) ## Everything, with the kill in every stage
	$(BIN)/pytest -q tests

test-mutants: $(STAMP) ## Small wrong changes to the source, one at a time: at least 95 % must make a test fail
	$(BIN)/python tests/mutants/run.py

docs: $(STAMP) ## docs/api/index.html: the reference of every public name, from the docstrings; no network
	$(BIN)/python -m pdoc --docformat google --output-directory docs/api openwavlm

clean: ## Removes the environment and all caches, never your runs
	rm -rf $(VENV) $(NEWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis
