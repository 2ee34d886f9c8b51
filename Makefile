# Two commands on a fresh machine: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUNS   := runs
READY  := $(VENV)/.ready
GPU_TESTS := tests/ops tests/generation tests/train/test_training_step.py
PEERS  := .peers

.PHONY: demo train-demo test test-gpu bench-gpu lint clean

demo: $(READY)                  ## draw with the weights that come with the package
	$(BIN)/aimamba sample --model avatars-64 -n 4 --cfg-scale 1.5 --temperature 0.8 --out samples

# These models are so small that a second thread hardly helps, and beside another busy program it would cost far more
# than it brings (docs/log.md).
train-demo: export OMP_NUM_THREADS ?= 1
train-demo: $(READY)            ## train both stages on avatars in a few minutes, then draw with them
	$(BIN)/aimamba train avatars-tiny-vq --out $(RUNS)/avatars-tiny-vq
	$(BIN)/aimamba train avatars-tiny-aim --out $(RUNS)/avatars-tiny-aim --tokenizer $(RUNS)/avatars-tiny-vq
	$(BIN)/aimamba sample --model $(RUNS)/avatars-tiny-aim -n 8 --cfg-scale 1.5 --top-k 100 --out samples

test: $(READY)                  ## the whole suite
	$(BIN)/python -m pytest -n 2

# On a machine whose Python has a CUDA build of torch already: make test-gpu READY= BIN="$(dirname "$(which python3)")"
test-gpu: $(READY)              ## kernels, graphs and training on a CUDA device, against the plain path
	PYTHONPATH=src $(BIN)/python3 -m pytest -q -n 8 -o addopts= -o filterwarnings= $(GPU_TESTS)

bench-gpu: $(READY)             ## the most telling figures of a CUDA device, in eight minutes; peers from $(PEERS)
	PYTHONPATH=src $(BIN)/python3 -m benchmarks --device cuda --telling --seconds 480 --peers $(PEERS)

lint: $(READY)                  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files "src/aimamba/ops/*.h" "src/aimamba/ops/*.cpp")
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch numpy
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:                          ## remove what the commands above made, but not trained runs
	rm -rf $(VENV) samples .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
