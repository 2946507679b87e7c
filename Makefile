# `make` alone lists the targets. Every target sets up .venv first if it has to.
#
#   make PYTHON=python3.12 ...   another interpreter (3.11 or newer)
#   make TORCH_INDEX=URL ...     take torch from another wheel index, e.g. a CUDA build
#   make WORKERS=8 test          more tests at a time

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_OUTPUT := outputs/demo
# Of the test suite. One more than a small machine has cores: many tests wait for processes that they started.
WORKERS ?= 3

# The stamp carries the hash of requirements.txt: an edited list is another stamp, so it installs again.
SHA := $(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('requirements.txt', 'rb').read()).hexdigest()[:12])" 2>/dev/null)
STAMP := .venv/.stamp-$(if $(SHA),$(SHA),none)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# A torch of another origin has the same version number, so pip would keep the old one: the stamp holds the index.
ifneq ($(TORCH_INDEX),)
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(TORCH_INDEX))
.PHONY: $(STAMP)
endif
endif

.PHONY: help demo digits-table digits-long digits-avatar digits-sparse test test-cpus faults check lint types format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo           8 prompted videos, one whose prompt changes, three that follow a hum, into $(DEMO_OUTPUT)"
	@echo "make digits-table   train and measure every objective on digits videos; resumes (ARGS=--help)"
	@echo "make digits-avatar  digits that speak: train, and measure whether they follow the sound; resumes (ARGS=--help)"
	@echo "make digits-long    long videos and prompt switches, before and after long tuning; resumes (ARGS=--help)"
	@echo "make digits-sparse  sparse attention on digits: what a mask costs, what training wins back; resumes (ARGS=--help)"
	@echo "make test           lint and run the whole test suite"
	@echo "make test-cpus      run the numeric tests once for each way in which CPUs sum: instruction sets, kernels, threads"
	@echo "make faults         try hundreds of bad inputs on every command and print figures (ARGS=--help)"
	@echo "make check          lint, types, architecture and unit tests: under a minute"
	@echo "make lint           ruff: check and format check"
	@echo "make types          mypy: what wan, model, pipeline and trainer hand each other"
	@echo "make format         ruff: mend and format"
	@echo "make clean          remove .venv and caches; outputs/ and runs/ stay"
	@echo "make help           this list"
	@echo "options             PYTHON=python3.12 (3.11 or newer)   TORCH_INDEX=URL (wheel index for torch)"

demo: $(STAMP)
	$(BIN)/python inference.py --config_path configs/infer/digits_student.yaml --data_path prompts/digits.txt --output_folder $(DEMO_OUTPUT)
	$(BIN)/python inference.py --config_path configs/infer/digits_interactive.yaml --data_path prompts/digits_demo.jsonl --output_folder $(DEMO_OUTPUT)/interactive
	$(BIN)/python inference.py --config_path configs/infer/digits_avatar.yaml --data_path prompts/digits_avatar/talks.jsonl --output_folder $(DEMO_OUTPUT)/avatar
	@echo "contact sheets: $(DEMO_OUTPUT)/contact_sheet.png and, of a video whose prompt changes, $(DEMO_OUTPUT)/interactive/contact_sheet.png; digits that follow a hum, with sound: $(DEMO_OUTPUT)/avatar"

# Hours on a CPU; finished rows are skipped. ARGS="--rows dmd,sid --jobs 1", ARGS=--dry_run, ...
# ARGS=--verify trains all again in folders of its own and prints each number next to the recorded one.
digits-table: $(STAMP)
	$(BIN)/python scripts/digits_table.py $(ARGS)

# The student of digits-table's row sid comes first, or ARGS="--weights FOLDER".
digits-long: $(STAMP)
	$(BIN)/python scripts/digits_long.py $(ARGS)

# Some two hours on two cores. ARGS="--rows sft --jobs 1", ARGS=--dry_run
digits-avatar: $(STAMP)
	$(BIN)/python scripts/digits_avatar.py $(ARGS)

# Hours of one core. ARGS="--rows causal_history --jobs 1", ARGS="--budget short", ARGS=--dry_run
digits-sparse: $(STAMP)
	$(BIN)/python scripts/digits_sparse.py $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# Numbers must hold on any CPU. Each line is one environment; the last is this machine's own with two threads.
define CPUS
OMP_NUM_THREADS=1
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=SSE41
OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2
OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE
OMP_NUM_THREADS=2
endef
export CPUS
NUMERIC := tests/contract tests/parity tests/model tests/wan tests/trainer/test_ranks.py tests/trainer/test_resume.py \
	tests/utils/parallel tests/pipeline/test_rollout.py tests/pipeline/test_sampler.py

test-cpus: $(STAMP)
	@echo "$$CPUS" | while read -r cpu; do echo "== $$cpu"; \
		env $$cpu $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(NUMERIC) < /dev/null || exit 1; done

# Bad files, values and places on the real commands: some 15 minutes on two cores. ARGS="--only lora picture --verbose".
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(ARGS)

# What a change can break at once; the whole suite is `make test`.
check: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(UNIT)

UNIT := tests/architecture tests/model tests/wan/test_geometry.py tests/wan/test_ledger.py tests/wan/test_masks.py \
	tests/wan/test_rope.py tests/wan/test_schedule.py tests/wan/test_tokens.py tests/utils/test_rng.py

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP):
	@$(PYTHON) -c "" || { echo "PYTHON=$(PYTHON) does not start; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "$$($(PYTHON) -V) is too old: requirements.txt needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -x $(BIN)/python ]; then \
		want=$$($(PYTHON) -c "import sys; print(sys.version_info[:2])"); have=$$($(BIN)/python -c "import sys; print(sys.version_info[:2])"); \
		[ "$$want" = "$$have" ] || { echo ".venv holds Python $$have but PYTHON=$(PYTHON) is $$want; run 'make clean' first" >&2; exit 1; }; \
	fi
	$(PYTHON) -m venv .venv
	rm -f .venv/.stamp-*
ifneq ($(TORCH_INDEX),)
	$(PIP) --index-url $(TORCH_INDEX) --force-reinstall "$$(grep '^torch==' requirements.txt)"
endif
	$(PIP) -r requirements.txt
	@echo "$(TORCH_INDEX)" > $@
