# make demo: the main job on a synthetic data set. make test: every check. Both make .venv and install first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint microct-base clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	# torch first and by its exact version, so that no larger build of it is taken for what needs torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/neurotome demo --out neurotome-demo

lint: .venv/installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# the longest files first (tests/conftest.py); one thread for each of the two workers: more would wait for each other
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# the packaged model, made again: about 70 minutes on two cores with AMX; stopped, the same command goes on
microct-base: .venv/installed
	$(BIN)/neurotome train phantom-stream --config microct_base --out runs/microct-base-1
	$(BIN)/neurotome train phantom-stream --config microct_base --init runs/microct-base-1 \
		--train.learning-rate 1.2e-3 --train.max-time 18m --train.seed 1 --stream.seed 1 --out runs/microct-base-2

clean:
	rm -rf .venv neurotome-demo
