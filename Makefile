# Two commands on a fresh machine: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUNS   := runs
READY  := $(VENV)/.ready
GPU_TESTS := tests/ops tests/generation tests/pipeline/test_batch_size.py tests/train/test_training_step.py
PEERS  := .peers
# Which build of PyTorch the demo takes: cpu, cuda, or by default cuda where there is an NVIDIA card. On Linux PyPI's
# brings some gigabytes of CUDA; elsewhere there is one build alone.
TORCH  ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
CPU    := --index-url https://download.pytorch.org/whl/cpu
SMALL  := $(filter cpu-Linux,$(TORCH)-$(shell uname))
# The demo needs no tools for development; where they are installed already, they do no harm.
DEMO   := $(if $(wildcard $(READY)),$(READY),$(VENV)/.demo)
PROMPTS := --prompt "a green critter with one eye on a purple background" \
           --prompt "a yellow robot with teal lights and two antennas" \
           --prompt "a purple planet with a broad ring" \
           --prompt "a pink flowerpot with a round cactus and closed eyes, teal background" \
           --prompt "a white pot with a palm tree and an angry look, orange background"
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo train-demo studio test test-studio test-replicas test-kills test-gpu bench-gpu lint audit docs notebooks wheel try-wheel space clean

demo: $(DEMO)                   ## draw with the weights that come with the package, after classes and after prompts
	$(BIN)/aimamba sample --model avatars-64 -n 4 --cfg-scale 1.5 --temperature 0.8 --out samples
	$(BIN)/aimamba sample --model avatars-64-text $(PROMPTS) -n 6 --cfg-scale 3 --out samples-text

# These models are so small that a second thread hardly helps, and beside another busy program it would cost far more
# than it brings (docs/log.md).
train-demo: export OMP_NUM_THREADS ?= 1
train-demo: $(DEMO)             ## train both stages on avatars in a few minutes, then draw with them
	$(BIN)/aimamba train avatars-tiny-vq --out $(RUNS)/avatars-tiny-vq
	$(BIN)/aimamba train avatars-tiny-aim --out $(RUNS)/avatars-tiny-aim --tokenizer $(RUNS)/avatars-tiny-vq
	$(BIN)/aimamba sample --model $(RUNS)/avatars-tiny-aim -n 8 --cfg-scale 1.5 --top-k 100 --out samples-trained

studio: $(VENV)/.studio         ## the page in the browser, at http://127.0.0.1:8000/studio/
	$(BIN)/aimamba studio

test: $(READY)                  ## the whole suite
	$(BIN)/python -m pytest -n 2

test-studio: $(READY)           ## the page in a headless Chromium of the system, and its handlers
	AIMAMBA_TEST_PAGE=1 $(BIN)/python -m pytest -n 0 tests/studio

test-replicas: $(READY)         ## two replicas behind Ray Serve, of which one is killed under load
	AIMAMBA_TEST_REPLICAS=1 $(BIN)/python -m pytest -n 0 tests/cli/test_cli_ray.py

test-kills: $(READY)            ## kill -9 at twenty random moments of training and of encoding
	AIMAMBA_TEST_KILLS=20 $(BIN)/python -m pytest -n 0 tests/cli/test_cli_killed.py

# On a machine whose Python has a CUDA build of torch already: make test-gpu READY= BIN="$(dirname "$(which python3)")"
test-gpu: $(READY)              ## kernels, graphs and training on a CUDA device, against the plain path
	PYTHONPATH=src $(BIN)/python3 -m pytest -q -n 8 -o addopts= -o filterwarnings= $(GPU_TESTS)

bench-gpu: $(READY)             ## the most telling figures of a CUDA device, in eight minutes; peers from $(PEERS)
	PYTHONPATH=src $(BIN)/python3 -m benchmarks --device cuda --telling --seconds 480 --peers $(PEERS)

lint: $(READY)                  ## style, types, layers, unsafe calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files "src/aimamba/ops/*.h" "src/aimamba/ops/*.cpp")
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src

# Not part of lint: it asks PyPI about every package, and what it says changes without a change of ours.
audit: $(READY)                 ## known vulnerabilities of the versions in constraints.txt
	$(PIP) pip-audit
	$(BIN)/pip-audit --disable-pip --no-deps --requirement constraints.txt

docs: $(VENV)/.docs             ## the documentation site, in build/site
	$(BIN)/python docs/site/build.py

$(VENV)/.docs: $(READY)
	$(PIP) --editable '.[docs]'
	touch $@

wheel: $(READY)                 ## the wheel and the source distribution, in dist/
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist

# Outside the repository, with an empty cache, so that kernels are compiled from the sources in the wheel.
try-wheel: wheel                ## install both in an empty environment, draw, and compare the images
	set -e; unset PYTHONPATH; try=$$(mktemp -d); trap 'rm -rf "$$try"' EXIT; export AIMAMBA_CACHE="$$try/cache"; \
	$(PYTHON) -m venv "$$try/venv"; pip="$$try/venv/bin/pip --quiet --disable-pip-version-check"; \
	$$pip install --constraint constraints.txt dist/*.whl; \
	(cd "$$try" && venv/bin/aimamba sample -n 2 --engine auto --out by-wheel); \
	$$pip uninstall --yes aimamba; $$pip install --constraint constraints.txt dist/*.tar.gz; \
	(cd "$$try" && venv/bin/aimamba sample -n 2 --engine auto --out by-sdist); \
	diff -r "$$try/by-wheel" "$$try/by-sdist"; \
	echo "drew $$(ls "$$try"/by-wheel/*-seed*.png | wc -l) images from the wheel, the same from the sdist"

space: wheel                    ## what a Hugging Face Space needs, in build/space
	rm -rf build/space
	mkdir -p build/space
	cp huggingface-space/* dist/*.whl build/space

notebooks: $(READY)             ## run the notebooks of examples/ and keep their outputs
	OMP_NUM_THREADS=1 $(BIN)/python examples/notebooks.py

$(READY): pyproject.toml constraints.txt
	$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt
	$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(if $(SMALL),$(PIP) -q --retries 1 --no-deps $(CPU) torch || echo "no CPU build of PyTorch there; taking PyPI's" >&2)
	$(PIP) torch numpy
	$(PIP) --editable .
	touch $@

$(VENV)/.studio: $(DEMO)
	$(PIP) --editable '.[studio]'
	touch $@

NEW_ENOUGH = @$(PYTHON) -c 'import sys; v = sys.version_info; \
	sys.exit("aimamba needs Python 3.11 or newer, and $(PYTHON) is %d.%d; choose another: make PYTHON=python3.12" \
	% (v[0], v[1]) if v < (3, 11) else 0)'

clean:                          ## remove what the commands above made, but not trained runs
	rm -rf $(VENV) build .cache dist samples samples-text samples-trained .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
