# Each target sets up .venv first; the second time that costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# more threads than one per process are slower on few cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# one file is one worker's, which shares what its tests set up; a worker that crashes ends them all
TOGETHER := --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# what another processor makes of the same sums: no AVX-512 nor AVX2, another maker's MKL
OTHER_PROCESSOR := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE
# the tests that compare steps of two programs, or of several ranks with one process
STEPS := tests/distributed/test_stages.py tests/distributed/test_backbones_ranks.py \
	tests/distributed/test_launchers.py tests/distributed/test_knn_ranks.py tests/evaluate/test_knn.py \
	tests/engine tests/model tests/methods tests/bench/test_step.py tests/kernels/test_step.py

.PHONY: help setup demo docs test test-slow test-processor test-all lint clean from-nothing
.DELETE_ON_ERROR:

help:
	@echo 'make demo      pre-train on photographs that are in the box, k-NN of every size, extract one'
	@echo 'make test      the tests'
	@echo 'make test-all  the slow tests, those on another processor and the linter too'
	@echo 'make docs      the documents as a site: build/docs/site/index.html'
	@echo 'make lint      ruff check and format check'
	@echo 'make clean     remove .venv and caches; runs/ stays'
	@echo 'Another interpreter: make demo PYTHON=python3.12. Arguments of the demo: ARGS="--seed 1"'

setup: $(READY)

demo: $(READY)
	@$(BIN)/poa-ds demo $(ARGS)

docs: $(READY)
	@$(BIN)/python docs/build_site.py build/docs
	@echo 'build/docs/site/index.html'

test: $(READY)
	@$(PYTEST) -n 2 $(TOGETHER)

# they wait now and then: for processes that begin, die and are missed
test-slow: $(READY)
	@$(PYTEST) -n 3 $(TOGETHER) -m slow

test-processor: $(READY)
	@$(OTHER_PROCESSOR) $(PYTEST) -n 2 $(TOGETHER) $(STEPS)

test-all: test test-slow test-processor lint

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interrupted set-up has left no $(READY), and one of another folder, moved or copied here, names
# that folder inside: both start from nothing. pip's cache keeps what was downloaded.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): from-nothing
endif
from-nothing:
	@rm -rf $(VENV)

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		'poa_ds needs Python 3.11 or newer, $(PYTHON) is not: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
		'$(PYTHON) lacks the module venv or ensurepip. Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@rm -f $@
	@echo 'setting up $(VENV): a few minutes and 7 GB of disk the first time'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	@echo '$(CURDIR)' > $@
