# `make demo` and `make test` need Python 3.11+ and make, nothing else: they build $(VENV) on first use.
#
#   make demo            a generated chest CT becomes a report        make demo CT=path/to/volume.nii.gz
#   make demo-train      two-stage training on synthetic CT, on two cores, ending in a checkpoint that reports
#   make demo-dpo        sample, score, pair and DPO on synthetic CT, judged before and after
#   make compare-negatives   training without and with negatives on synthetic CT
#   make claims          do the papers' claims hold on synthetic CT?   make claims ROWS=everything runs the whole grid
#   make test            the fast tests (under 8 minutes on 2 cores)  make test PYTEST_ARGS="-k geometry"
#   make test-slow       the rest                                     make lint, make types, make wheel

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
CT ?=
OUT ?= demo
JOBS ?= 2
ROWS ?= all
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
TORCH := $(shell sed -n 's/^\(torch[=<>][^ ;]*\).*/\1/p' $(CONSTRAINTS))

# The first interpreter that runs, is new enough and can make environments; a pyenv shim may exist and still not run.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo "$$candidate" && break; done)

TORCHRUN = OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node $(JOBS)
PREDICT = --batch-size 16 --max-new-tokens 320

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo demo-train demo-dpo compare-negatives claims test test-slow lint format types wheel wheel-size clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -9

# torch goes first and alone, so that nothing that depends on it chooses another build of it.
$(BIN)/.stamp-torch: $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with the venv module is required and was not found." \
		"Install it (Debian: apt install python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing $(TORCH)"
	@$(PIP) -c $(CONSTRAINTS) "$(TORCH)"
	@touch $@

$(BIN)/.stamp-demo: $(BIN)/.stamp-torch pyproject.toml
	@echo "Installing hf_mu2 with what the demo needs"
	@$(PIP) -c $(CONSTRAINTS) -e ".[dicom]"
	@touch $@

$(BIN)/.stamp-dev: $(BIN)/.stamp-torch pyproject.toml
	@echo "Installing hf_mu2 with what the tests need"
	@$(PIP) -c $(CONSTRAINTS) -e ".[train,score,endpoint,scale,dicom,report,clinical,demo,serve,dev]"
	@touch $@ $(BIN)/.stamp-demo

demo: $(BIN)/.stamp-demo
ifeq ($(strip $(CT)),)
	@$(BIN)/hf-mu2 phantom --n 1 --seed 7 --out "$(OUT)/phantom"
	@$(BIN)/hf-mu2 report "$$(find "$(OUT)/phantom" -name '*.nii.gz' | sort | head -1)" --out "$(OUT)"
else
	@$(BIN)/hf-mu2 report "$(CT)" --out "$(OUT)"
endif

# Every step continues where a killed one stopped; `rm -rf demo-train` starts anew.
demo-train: $(BIN)/.stamp-dev
	@echo "1/6  Synthetic chest CT"
	@$(BIN)/hf-mu2 phantom --benchmark demo --resolution coarse --num-workers $(JOBS) --out demo-train/phantoms
	@echo "2/6  Prepared volumes"
	@$(BIN)/hf-mu2 data prepare demo-train/phantoms --out demo-train/prepared --workers $(JOBS)
	@echo "3/6  Stage 1: align"
	@test -e demo-train/align/curve.png || $(BIN)/hf-mu2 train demo-1-align
	@echo "4/6  Stage 2: adapt"
	@test -e demo-train/adapt/curve.png || $(BIN)/hf-mu2 train demo-2-adapt
	@echo "5/6  One checkpoint"
	@test -e demo-train/model || $(BIN)/hf-mu2 merge demo-train/adapt demo-train/model
	@echo "6/6  A report of a phantom it has not seen"
	@$(BIN)/hf-mu2 report demo-train/phantoms/test/phantom_300000000.nii.gz --model demo-train/model --out demo-train/report
	@echo "Curves: demo-train/align/curve.png, demo-train/adapt/curve.png"

# Every step continues where a killed one stopped; `rm -rf demo-dpo` starts anew.
demo-dpo: $(BIN)/.stamp-dev
	@echo "1/8  Synthetic chest CT: studies to sample, studies to test on, pairs that are one finding apart"
	@$(BIN)/hf-mu2 phantom --n 256 --seed 100000000 --split train --spacing 5 4.5 4.5 --num-workers $(JOBS) --out demo-dpo/phantoms
	@$(BIN)/hf-mu2 phantom --n 128 --seed 300000000 --split test --spacing 5 4.5 4.5 --num-workers $(JOBS) --out demo-dpo/phantoms
	@$(BIN)/hf-mu2 phantom --pairs presence --n 64 --spacing 5 4.5 4.5 --out demo-dpo/apart
	@echo "2/8  Prepared volumes"
	@$(BIN)/hf-mu2 data prepare demo-dpo/phantoms --out demo-dpo/prepared --workers $(JOBS)
	@echo "3/8  Eight candidates per study"
	@test -e demo-dpo/candidates.jsonl || $(TORCHRUN) -m hf_mu2.cli sample demo-dpo/prepared --split train \
		--batch-size 8 --max-new-tokens 320 --out demo-dpo/candidates.jsonl
	@echo "4/8  Scores"
	@test -e demo-dpo/scored.jsonl || $(BIN)/hf-mu2 score demo-dpo/candidates.jsonl \
		--references demo-dpo/prepared/train.jsonl --out demo-dpo/scored.jsonl
	@echo "5/8  Pairs"
	@test -e demo-dpo/pairs || $(BIN)/hf-mu2 pairs demo-dpo/scored.jsonl --out demo-dpo/pairs
	@echo "6/8  DPO"
	@test -e demo-dpo/model/curve.png || $(TORCHRUN) -m hf_mu2.cli train demo-dpo
	@echo "7/8  Reports of studies that were never sampled, before and after"
	@test -e demo-dpo/before_test.jsonl || $(TORCHRUN) -m hf_mu2.cli predict demo-dpo/prepared --split test $(PREDICT) --out demo-dpo/before_test.jsonl
	@test -e demo-dpo/before_apart.jsonl || $(TORCHRUN) -m hf_mu2.cli predict demo-dpo/apart $(PREDICT) --out demo-dpo/before_apart.jsonl
	@test -e demo-dpo/after_test.jsonl || $(TORCHRUN) -m hf_mu2.cli predict demo-dpo/prepared --split test --model demo-dpo/model $(PREDICT) --out demo-dpo/after_test.jsonl
	@test -e demo-dpo/after_apart.jsonl || $(TORCHRUN) -m hf_mu2.cli predict demo-dpo/apart --model demo-dpo/model $(PREDICT) --out demo-dpo/after_apart.jsonl
	@echo "8/8  Did it help, or was the judge gamed?"
	@$(BIN)/python scripts/demo_dpo.py demo-dpo

# One seed: without negatives, with noise, another patient, a hard one. Every step continues where a killed one stopped.
compare-negatives: $(BIN)/.stamp-dev
	@$(BIN)/python scripts/compare_negatives.py --out compare-negatives

# One row of the grid on three seeds, and what the whole grid costs; runs that are done are not run again. With DOCS=docs
# the page and its figures are written anew from all runs there are.
claims: $(BIN)/.stamp-dev
	@$(BIN)/python -m benchmarks.claims --out claims --rows $(ROWS) $(if $(DOCS),--docs $(DOCS))

# A worker per core with one torch thread each beats fewer workers that fight over the cores.
test: $(BIN)/.stamp-dev
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(BIN)/.stamp-dev
	$(BIN)/python -m pytest -m "slow or gpu" -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(BIN)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(BIN)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(BIN)/.stamp-dev
	$(BIN)/mypy

wheel: $(BIN)/.stamp-torch
	$(BIN)/python -m pip --disable-pip-version-check wheel -qq --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

# The embedded checkpoint may cost an installer at most 15 MB of the wheel.
wheel-size: wheel
	@$(BIN)/python -m tests.wheel_size dist

clean:
	rm -rf build dist demo demo-train demo-dpo compare-negatives claims .pytest_cache .mypy_cache .ruff_cache .hypothesis
