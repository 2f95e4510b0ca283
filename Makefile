# entropy_attn: `make demo` and `make test` set up everything they need in .venv.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# One process a core; more threads inside each would only wait for one another.
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto
RESULTS ?= benchmarks/results
# of the tests of the kernels, those that an emulated card runs as well
EMULATED := forward schedules addresses backward maps properties autotune
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null)

.PHONY: help install demo test codegen emulate newest lint wheel-test gpu clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## the package and its tools, in .venv

$(STAMP): setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(STAMP)  ## profile the embedded model and compare pictures: tables and PNGs in demo/
	$(BIN)/entropy-attn profile --out demo
	$(BIN)/entropy-attn generate --prompt "a red circle and a blue square" --size 128x128 --compare --out demo/compare.png
	@echo "Pictures are in $(CURDIR)/demo:" && ls demo

test: $(STAMP)  ## all tests: the kernels in Triton's interpreter, then the code compiled for the usual GPUs, and that code run
	TRITON_INTERPRET=1 $(PYTEST) tests --ignore=tests/codegen --ignore=tests/emulation; first=$$?; \
	$(PYTEST) tests/codegen tests/emulation && exit $$first

emulate: $(STAMP)  ## every row and option on emulated cards, faults planted in every kernel, random calls: an hour
	$(BIN)/python -m tests.emulation.sweep --anew --out $(RESULTS)/emulation.csv
	$(BIN)/python -m tests.emulation.mutants --out $(RESULTS)/mutants.csv
	$(BIN)/python -m tests.emulation.fuzz --num 200 --variations 9 --work 5e6
	$(PYTEST) $(addprefix tests/kernels/test_,$(EMULATED:=.py)) --on sm_90

codegen: $(STAMP)  ## every row of the kernels' tables, compiled for every GPU: 15 minutes
	$(PYTEST) tests/codegen --every-row

newest: $(STAMP)  ## the routing tests on the newest diffusers, the kernels on the newest Triton, where those are not the pinned ones
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .newest diffusers
	@old=$$($(BIN)/python -c 'import diffusers; print(diffusers.__version__)'); \
	new=$$(PYTHONPATH=$(CURDIR)/.newest $(BIN)/python -c 'import diffusers; print(diffusers.__version__)'); \
	if [ "$$old" = "$$new" ]; then echo "diffusers $$new is the pinned one, which 'make test' runs on"; \
	else PYTHONPATH=$(CURDIR)/.newest $(PYTEST) tests/routing; fi
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .newest-triton triton
	@old=$$($(BIN)/python -c 'import triton; print(triton.__version__)'); \
	new=$$(PYTHONPATH=$(CURDIR)/.newest-triton $(BIN)/python -c 'import triton; print(triton.__version__)'); \
	if [ "$$old" = "$$new" ]; then echo "Triton $$new is the pinned one, which 'make test' runs on"; \
	else PYTHONPATH=$(CURDIR)/.newest-triton $(PYTEST) tests/emulation --ignore=tests/emulation/test_gluon.py -k "not random_calls"; fi

lint: $(STAMP)  ## style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

wheel-test: $(STAMP)  ## build sdist and wheel, and try the wheel in an empty environment elsewhere
	$(BIN)/python .ci/wheel_test.py

gpu:  ## check and measure on the GPU of this machine, into gpu-results/; GPU='--help' for parts, budget and resuming
	$(PYTHON) -m benchmarks.gpu --commit '$(COMMIT)' $(GPU)

clean:  ## forget what was installed and drawn
	rm -rf $(VENV) .newest .newest-triton demo build dist *.egg-info
