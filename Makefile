# entropy_attn: `make demo` and `make test` set up everything they need in .venv.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
DOCS    := $(VENV)/.installed-docs
# One process per core, one thread each.
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto
# All tests but those that need the compiler, or the site.
INTERPRETED := tests --ignore=tests/codegen --ignore=tests/emulation --ignore=tests/site
RESULTS ?= benchmarks/results
# The tests of the kernels that also run on an emulated card.
EMULATED := tests/kernels/test_forward.py tests/kernels/test_schedules.py tests/kernels/test_addresses.py \
            tests/kernels/test_backward.py tests/kernels/test_maps.py tests/kernels/test_properties.py \
            tests/kernels/test_autotune.py tests/kernels/test_chunks.py
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null)

.PHONY: help install demo notebooks test slow docs codegen emulate newest lint fix wheel-test gpu clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## install the package and the development tools into .venv

$(STAMP): setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[all,dev]'
	touch $@

demo: $(STAMP)  ## profile the embedded transformer and compare images: tables and PNG files in demo/
	rm -rf demo
	$(BIN)/entropy-attn profile --model shapes:transformer --out demo
	$(BIN)/entropy-attn generate --model shapes:transformer --prompt "a green triangle and a red circle" --size 96x96 --steps 12 --scale logn,lognoroot,logn:strength=4 --compare --out demo/compare.png
	@echo "Images are in $(CURDIR)/demo:" && ls demo

notebooks: $(STAMP)  ## execute the notebooks and write what they show into them
	$(BIN)/python -m docs.generate.notebooks

test: $(STAMP)  ## run all tests: kernels in Triton's interpreter, compiled code for two GPUs, compiled code on an emulated card
	TRITON_INTERPRET=1 $(PYTEST) $(INTERPRETED); first=$$?; \
	$(PYTEST) tests/codegen tests/emulation && exit $$first

emulate: $(STAMP)  ## run every configuration on emulated cards, with planted faults and random calls: an hour
	$(BIN)/python -m tests.emulation.sweep --anew --out $(RESULTS)/emulation.csv
	$(BIN)/python -m tests.emulation.mutants --out $(RESULTS)/mutants.csv
	$(BIN)/python -m tests.emulation.fuzz --num 200 --variations 9 --work 5e6
	$(PYTEST) $(EMULATED) --on sm_90

docs: $(DOCS)  ## build the documentation site into site/, and check its links, its reference and that it requests nothing
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean --quiet
	$(PYTEST) tests/site
	@echo "Open site/index.html; its search needs a server: python -m http.server --directory site"

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[docs]'
	touch $@

slow: $(STAMP)  ## run the tests that take minutes, which `make test` leaves out
	TRITON_INTERPRET=1 $(PYTEST) $(INTERPRETED) -m slow

codegen: $(STAMP)  ## compile every configuration of the kernels for every GPU: 15 minutes
	$(PYTEST) tests/codegen --every-row

newest: $(STAMP)  ## test against the newest diffusers and Triton, where they differ from the pinned ones
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .newest diffusers
	@old=$$($(BIN)/python -c 'import diffusers; print(diffusers.__version__)'); \
	new=$$(PYTHONPATH=$(CURDIR)/.newest $(BIN)/python -c 'import diffusers; print(diffusers.__version__)'); \
	if [ "$$old" = "$$new" ]; then echo "diffusers $$new is the pinned version, which 'make test' covers"; \
	else PYTHONPATH=$(CURDIR)/.newest $(PYTEST) tests/integrations tests/pipelines; fi
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .newest-triton triton
	@old=$$($(BIN)/python -c 'import triton; print(triton.__version__)'); \
	new=$$(PYTHONPATH=$(CURDIR)/.newest-triton $(BIN)/python -c 'import triton; print(triton.__version__)'); \
	if [ "$$old" = "$$new" ]; then echo "Triton $$new is the pinned version, which 'make test' covers"; \
	else PYTHONPATH=$(CURDIR)/.newest-triton $(PYTEST) tests/emulation --ignore=tests/emulation/test_gluon.py -k "not random_calls"; fi

lint: $(STAMP)  ## check style and types: ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fix: $(STAMP)  ## apply ruff's fixes and its format
	$(BIN)/ruff check --fix . ; status=$$?; $(BIN)/ruff format . && exit $$status

wheel-test: $(STAMP)  ## build the sdist and the wheel, and use the wheel in an empty environment
	$(BIN)/python .ci/wheel_test.py

gpu:  ## test and measure on the GPU of this machine, into gpu-results/; GPU='--help' lists options
	$(PYTHON) -m benchmarks.gpu --commit '$(COMMIT)' $(GPU)

clean:  ## remove .venv and everything that was built or drawn
	rm -rf $(VENV) .mypy_cache .ruff_cache .newest .newest-triton demo site build dist *.egg-info
