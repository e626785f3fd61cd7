# Everything runs from .venv, made from requirements.lock; python3 with venv and make are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-lock
RUNS := $(VENV)/.made-to-run
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=
# Most of the suite's time is spent waiting, so more workers than cores.
WORKERS ?= 4
TOGETHER := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo try test soak test-arm64 test-systemd bench-peers lint types check lock wheelhouse clean

demo: $(RUNS)
	$(BIN)/edgetwin demo $(ARGS)

# From a clean clone to the values of a device at a broker:
# make try ARGS="tcp://10.0.0.5:502 --tag 'temperature: holding 100 float32' --mqtt mqtt://broker"
try: $(RUNS)
	$(BIN)/edgetwin try $(ARGS)

# Files side by side, with the kernels compiled before, which each worker would else do for itself; where ARGS names
# some of the files, one after another in one process.
test: $(STAMP)
	$(if $(findstring tests/,$(ARGS)),,$(BIN)/edgetwin warm > /dev/null)
	$(BIN)/python -m pytest $(if $(findstring tests/,$(ARGS)),,$(TOGETHER)) $(ARGS)

# The tests of outages and random faults in their long form, then half an hour of memory, files and disk.
soak: $(STAMP)
	EDGETWIN_SOAK=1 $(BIN)/python -m pytest -s tests/e2e/test_books.py tests/cloud/test_random_faults.py tests/e2e/test_chaos.py tests/soak/soak.py $(ARGS)

# Kernels, codec and a replay on an emulated arm64 (root, debootstrap, qemu-user-static, a Debian mirror); see the script.
test-arm64: $(STAMP)
	tests/arm64/run.sh $(ARGS)

# The installer and the unit under a systemd that lives (root, debootstrap, systemd-container, a Debian mirror).
test-systemd: $(STAMP)
	tests/systemd/live.sh $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# What running and the demo take, a third of the time that all of it takes; the rest is for tests.
$(RUNS): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PYTHON) -c "import sys; sys.path.insert(0, 'systemd'); from wheelhouse import pinned, runtime; \
	  print(pinned(open('requirements.lock').read(), runtime('demo', 'build')))" > $(VENV)/to-run.txt
	$(PIP) --require-hashes --only-binary=:all: --no-compile -r $(VENV)/to-run.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

$(STAMP): $(RUNS)
	$(PIP) --require-hashes --only-binary=:all: --no-compile -r requirements.lock
	touch $@

# Edgetwin beside the tools that its users know: an hour and a quarter. ARGS="--quick" takes a few minutes, --help says more.
bench-peers: $(STAMP)
	$(BIN)/python benchmarks/peers/bench.py $(ARGS)

# Writes requirements.lock anew from the ranges in pyproject.toml (needs pip-tools).
lock:
	pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --strip-extras --allow-unsafe --no-header --extra demo --extra test --extra build -o requirements.lock pyproject.toml

# A folder to carry to a gateway: sudo ./install.sh in it. ARGS="--machine aarch64 --python 3.13" for another machine's.
wheelhouse: $(STAMP)
	$(BIN)/python systemd/wheelhouse.py wheelhouse $(ARGS)

clean:
	rm -rf $(VENV) wheelhouse build dist *.egg-info
