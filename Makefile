# make demo: the main job on a synthetic data set. make test: every check. Both make .venv and install first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs bench microct-base microct-base-25d clean

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

# the pages under docs/ as a site: docs/_build/index.html
docs: .venv/installed
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build

# speed of training beside other packages, whose environments it makes first; stopped, the same command goes on
bench: .venv/installed
	$(BIN)/python benchmarks/training_speed.py peers
	$(BIN)/python benchmarks/training_speed.py

# the packaged model, made again: an hour and a half on two cores; stopped, the same command goes on
DATA ?= ../shared/data
microct-base: .venv/installed
	$(BIN)/python benchmarks/label_maps.py --data $(DATA) --out runs/label_maps.npz
	$(BIN)/neurotome train phantom-stream --config microct_base --stream.maps runs/label_maps.npz --out runs/microct-base
	$(BIN)/python benchmarks/raise_class.py runs/microct-base "blood vessel" --by 0.693 --out runs/microct-base-raised

# the same for three neighbouring slices, trained on from the packaged model
microct-base-25d: .venv/installed
	$(BIN)/neurotome train phantom-stream --config microct_base_25d --out runs/microct-base-25d

clean:
	rm -rf .venv neurotome-demo
