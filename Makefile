# `make demo` shows train, export and predict; `make test` runs the tests. Both create .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo
GPU_MODELS ?= build/gpu-models
GPU_OPTIONS ?=
BENCH_OPTIONS ?=
MUTATE ?=
DOCKER ?= docker
TARGET ?= cpu
IMAGE_OPTIONS ?=
TEST_PROCESSES ?= 3

.PHONY: help setup demo site pages test test-all coverage mutate test-gpu gpu-models check lint docs constraints bench image clean

help:
	@echo "make demo    set up, then train, export and predict in $(DEMO)/ and show the result"
	@echo "make test    set up, then run the tests, but for those marked slow"
	@echo "make coverage    all tests, and what of the package they run: build/coverage/html/index.html"
	@echo "make mutate  change the code of modules where errors would hide, one operator at a time, and see whether"
	@echo "             tests fail; 20 minutes for MUTATE='crops plan ...'; see docs/testing.md"
	@echo "make test-gpu    every check that needs an NVIDIA GPU, with plain PYTHON, without torch"
	@echo "make gpu-models  train and export a model for test-gpu in $(GPU_MODELS)/, where torch is"
	@echo "make check   lint, types, import contracts, then all tests: what CI runs"
	@echo "make docs    write docs/cli.md, docs/options.md and docs/api.md again"
	@echo "make constraints  write constraints.txt again, with the newest versions"
	@echo "make site    the pages as a site that needs no server: build/site/index.html"
	@echo "make bench   compare with other software and measure scaling, for half an hour; the loader of"
	@echo "             training too: BENCH_OPTIONS='--train-images DIR'; all options: python -m benchmarks --help"
	@echo "make image   build the container image alexdeploy:$(TARGET); TARGET=gpu, TARGET=train: docs/containers.md"
	@echo "make clean   remove .venv and $(DEMO)/"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,train,dev]'
	touch $@

# The three commands of the README, in an empty folder.
demo: setup
	rm -rf $(DEMO) && mkdir -p $(DEMO)
	cd $(DEMO) && PATH="$(abspath $(BIN)):$$PATH" sh -ec '\
		echo "$$ alexdeploy train"; alexdeploy train; \
		echo "$$ alexdeploy export --fp16"; alexdeploy export --fp16; \
		echo "$$ alexdeploy predict images/ --tencrop"; alexdeploy predict images/ --tencrop'

# Three processes, of which two compute and one waits for what it started; the tests of a file run in one, so that their
# fixtures are built once.
# What Python compiles is kept, also where the environment says otherwise: each of hundreds of processes would compile
# the package again.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0
test: setup
	$(PYTEST) -m 'not slow'

test-all: setup
	$(PYTEST)

# Lines and branches, of child processes too. Tests run a third longer.
coverage: setup
	mkdir -p build/coverage && rm -f build/coverage/data*
	$(BIN)/python -m coverage run -m pytest -n $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report
	$(BIN)/python -m coverage json --quiet -o build/coverage/report.json
	$(BIN)/python tests/coverage_list.py build/coverage/report.json

# In an environment of its own on top of .venv: mutmut 3.8.0 does not work with pytest 9.2.
MUTMUT := build/mutmut
mutate: setup
	test -x $(MUTMUT)/bin/python || $(BIN)/python -m venv $(MUTMUT)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(MUTMUT)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth
	$(MUTMUT)/bin/python -m pip install --quiet --disable-pip-version-check 'mutmut==3.8.0' 'pytest<9.2'
	$(MUTMUT)/bin/python tests/mutation.py $(MUTATE)

# On a GPU machine with tensorrt, pycuda and onnxruntime: PYTHON=/opt/kit/python3 make test-gpu
# Parts of it: GPU_OPTIONS='--root kept --seconds 180 --checks build,answers'
test-gpu:
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(PYTHON) tests/gpu_checks.py $(GPU_OPTIONS) $(wildcard $(GPU_MODELS)/models/*)

# Trained weights for it: the rendered set's model, in every precision. Copy the folder to the GPU machine.
gpu-models: setup
	mkdir -p $(GPU_MODELS)
	cd $(GPU_MODELS) && PATH="$(abspath $(BIN)):$$PATH" sh -ec '\
		alexdeploy train; \
		alexdeploy export --fp16 --int8 --calibrate data/sample/train'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

check: lint test-all

# The command-line reference, from the commands themselves; a test compares.
docs: setup
	$(BIN)/python -m typer --app app alexdeploy.cli.app utils docs --name alexdeploy --title "Command line" --output docs/cli.md
	$(BIN)/python tests/cli/command_options.py > docs/options.md
	$(BIN)/griffe2md alexdeploy --output docs/api.md

# The newest versions that all extras allow together, for Python 3.10 and later.
constraints: setup
	.ci/constraints

# From a folder in which the pages of the root stand beside those of docs/. A warning ends it.
site: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(MAKE) --no-print-directory pages

# Where zensical is there already.
pages:
	rm -rf build/site build/site-pages && mkdir -p build && cp -r docs build/site-pages
	for page in CHANGELOG CONTRIBUTING RELEASE SECURITY; do cp $$page.md build/site-pages/; done
	cp README.md build/site-pages/overview.md
	sed -i -e 's:](docs/:](:g' -e 's:](\.\./\([A-Z]*\.md\):](\1:g' -e 's:](README.md:](overview.md:g' -e 's:](LICENSE):](https\://www.apache.org/licenses/LICENSE-2.0):' build/site-pages/*.md
	$(BIN)/zensical build --strict --clean

bench: setup
	$(BIN)/python -m benchmarks $(BENCH_OPTIONS)

image:
	$(DOCKER) build --target $(TARGET) --tag alexdeploy:$(TARGET) $(IMAGE_OPTIONS) \
		--build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' alexdeploy/core/version.py)" \
		--build-arg REVISION="$$(git rev-parse HEAD)" .

clean:
	rm -rf $(VENV) $(DEMO)
