# Every habit has one command here, and .ci/run calls the same ones. Each sets up .venv itself when needed.
# With no CUDA device, `PIP_EXTRA_INDEX_URL=<PyTorch's CPU index>` in the environment saves several GB.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ARTIFACTS := $(wildcard artifacts/v*)
DRILLS := stop health drive broken flips cycles kills workers hang overload operators soak

# One lock for Python 3.10 to 3.12, with markers where they need different versions.
# torch is pinned in setup.cfg: a lock would fix one of its CPU and CUDA builds for everybody.
LOCK_VENV := build/lock
COMPILE := UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(LOCK_VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	--no-emit-package torch --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help setup trainers simulator build rebuild cache serve proxy monitoring monitor test bench drills check image-test image fix lock dist notes clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(VENV)/serve.stamp: requirements/serve.txt setup.cfg pyproject.toml client/setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/serve.txt -e client -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/serve.stamp requirements/dev.txt environment/setup.cfg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt -e environment -e '.[onnx,sb3,train,drive,bench,mlflow,tracing,test,check]'
	touch $@

setup: $(VENV)/serve.stamp  ## Create .venv with what serving needs

trainers: $(VENV)/serve.stamp  ## Add what exporting policies needs: stable-baselines3, ONNX, Gymnasium, highway-env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/dev.txt -e '.[onnx,sb3,train]'

simulator: $(VENV)/serve.stamp  ## Add what driving needs: Gymnasium, highway-env, the environment service, drawing
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/dev.txt -e environment -e '.[drive,train]'

build: setup  ## Build and verify an archive of each artifact
	$(BIN)/carla-policy build $(ARTIFACTS)

# For development: a registry refuses archives that are not those that were registered.
rebuild: setup  ## Delete the archives of the shipped artifacts and the registry, and build them again
	rm -rf $(patsubst artifacts/%,model_store/carla_policy-%.mar,$(ARTIFACTS)) model_store/registry.json*
	$(BIN)/carla-policy build $(ARTIFACTS)

cache: build  ## Record Java's ahead-of-time cache, half a minute once: a server starts sooner with it
	-$(BIN)/python -m carla_policy_tools.aot_recording

serve: cache  ## Serve all versions on this machine until Ctrl-C
	$(BIN)/carla-policy serve $(SERVE_OPTIONS)

proxy: setup  ## Put HAProxy into build/ if it is not on the PATH, from Debian's packages, without root
	$(BIN)/python -m carla_policy_tools.routing.haproxy

monitoring: setup  ## Put Prometheus and Alertmanager into build/ if they are not on the PATH, from Debian's packages
	$(BIN)/python -m carla_policy_tools.monitoring.programs

monitor: monitoring  ## Watch the server of `make serve` with Prometheus, and print alerts, until Ctrl-C
	$(BIN)/python -m carla_policy_tools.monitoring $(MONITOR_OPTIONS)

# Tests mostly wait for servers to start, so three at once suit two cores; `PYTEST_OPTIONS="-n 0"` takes one at a time.
test: $(VENV)/dev.stamp  ## Run every test
	-$(BIN)/python -m carla_policy_tools.routing.haproxy  # without it the tests of routing are skipped
	-$(BIN)/python -m benchmarks.bench.wrk  # without it one test of the benchmark is skipped
	-$(BIN)/python -m tests.kubectl  # without it the tests of Kubernetes are skipped
	-$(BIN)/python -m carla_policy_tools.monitoring.programs  # without it the tests of alerts and dashboards are skipped
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

$(VENV)/bench.stamp: $(VENV)/serve.stamp requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/dev.txt -e '.[onnx,bench]'
	touch $@

bench: $(VENV)/bench.stamp  ## Measure our server beside others, ten minutes; `make bench BENCH_OPTIONS=--quick`: one
	-$(BIN)/python -m benchmarks.bench.wrk  # without it our own slower sender takes its place
	$(BIN)/carla-policy bench $(BENCH_OPTIONS)

drills: setup  ## Run every fault drill, about an hour; `make drills DRILLS="stop cycles"` runs some
	@failed=; for drill in $(DRILLS); do $(BIN)/python -W ignore -m benchmarks.drills $$drill || failed="$$failed $$drill"; done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

check: $(VENV)/dev.stamp  ## Lint, formatting, types and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --no-progress --min-severity medium .github/workflows

# The same steps run in `make test` without an engine; this one has requirements installed and the cache recorded too.
image-test: $(VENV)/dev.stamp  ## Run the Dockerfile's steps and its image without an engine, some minutes, as root
	CARLA_POLICY_IMAGE_TEST=full $(BIN)/python -m pytest --numprocesses 0 tests/test_containers.py

image:  ## Build the image with Docker; `make image IMAGE_OPTIONS="--build-arg ..."` passes options on
	docker build -t carla-policy-serving:dev --build-arg GIT_SHA=$$(git rev-parse HEAD) $(IMAGE_OPTIONS) .

fix: $(VENV)/dev.stamp  ## Mend what lint and formatting can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## Resolve the locked requirements again
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(COMPILE) -o requirements/serve.txt setup.cfg
	$(COMPILE) -o requirements/dev.txt -c requirements/serve.txt --extra onnx --extra sb3 --extra train --extra drive --extra bench --extra mlflow --extra tracing --extra test --extra check setup.cfg environment/setup.cfg
	rm -rf $(LOCK_VENV)

dist: setup  ## Make source distributions and wheels of the server's, the client's and the environment's in dist/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'build>=1.2'
	@for part in . client environment; do \
		SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} $(BIN)/python -m build --outdir dist $$part || exit 1; \
	done

notes: setup  ## Print what the changelog says of a release, `make notes VERSION=0.1.0`
	@$(BIN)/python -m carla_policy_tools.changelog "$(VERSION)"

clean:  ## Remove what can be made again
	rm -rf $(VENV) build *.egg-info */*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		model_store/*.mar model_store/*.mar.sig model_store/registry.json*
