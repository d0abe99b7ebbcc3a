# The only door. `make help` lists what it opens.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
BASIN := target/debug/basin
DEMO ?= out/demo

FUZZ_SECONDS ?= 600
PYTHON ?= python3
MDBOOK := 0.5.4

# Always the whole workspace, so that every command builds libraries with the same features, and nothing twice.
PROGRAMS := build --locked --workspace --bin basin --bin basin-coordinator --bin basin-worker
BENCH := build --locked --workspace --bin basin-bench

.PHONY: help setup services build demo up-local down-local up down compose-check demo-fleet observe browser test test-cpus check docs reference helm-check test-k8s release images-check sbom validate chaos fuzz bench bench-authors bench-gpu bench-parts bench-quality bench-rounding bench-coordinator bench-overhead bench-dashboard bench-editing bench-networks throughput study models samples clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the pinned libtorch under target/ (CUDA=1: with what a GPU needs)
	@infra/libtorch/setup.sh

services: ## Install RabbitMQ (Debian's package) for the tests and the local fleet
	@infra/rabbitmq/setup.sh

build: setup ## Build everything
	@$(CARGO) build --locked --workspace

demo: setup ## Project 12 real images with the whole method and write a report
	@$(CARGO) build --locked --workspace --bin basin
	@$(BASIN) project samples --model models/fashion32 --out $(DEMO) --profile fast --limit 12

up-local: setup services ## Start RabbitMQ, an S3 server, a coordinator and two workers on this machine
	@$(CARGO) $(PROGRAMS)
	@infra/local/up.sh

down-local: ## Stop exactly those
	@infra/local/down.sh

up: target/compose/env ## The same in containers, with collector, Prometheus and Grafana (needs Docker with Compose)
	@docker compose --env-file $< -f infra/compose.yaml up --build --detach
	@echo "http://127.0.0.1:8470 the dashboard (token: $<), http://127.0.0.1:3000 Grafana"
	@echo "Data sets and models go into the store first: basin copy, basin push; then basin submit s3://… (docs/src/how-to/fleet.md)"

down: target/compose/env ## Stop those, keeping their volumes
	@docker compose --env-file $< -f infra/compose.yaml down

target/compose/env:
	@mkdir -p $(@D)
	@umask 077; for name in S3_SECRET RABBITMQ_PASSWORD BASIN_TOKEN GRAFANA_PASSWORD; do echo "$$name=$$(python3 -c 'import secrets; print(secrets.token_hex(16))')"; done > $@

compose-check: ## infra/compose.yaml, read by Compose's own loader (Go builds it, once)
	@infra/kubernetes/compose-check.sh

demo-fleet: setup services ## The demo through that fleet
	@$(CARGO) $(PROGRAMS)
	@infra/local/demo.sh

observe: setup services ## A short run watched: each question of dashboards and alerts is put to a real Prometheus (Go builds it, once)
	@$(CARGO) $(PROGRAMS)
	@infra/observe/observe.sh

helm-check: ## The Helm chart: lint, unit tests, schemas of Kubernetes, KEDA and operators (Go builds Helm, once)
	@infra/kubernetes/check.sh

test-k8s: setup services ## The chart on a real API server, its pods as processes, KEDA (root; Go builds a control plane and KEDA, once)
	@infra/kubernetes/api.sh
	@$(CARGO) $(PROGRAMS)
	@infra/kubernetes/pods.sh
	@infra/kubernetes/keda.sh

release: setup ## Build the programs as they are shipped: optimised, without the crash points of the tests (target/release)
	@$(CARGO) $(PROGRAMS) --release

images-check: release ## The contents of the container images, assembled and run without a container engine (root)
	@infra/images/check.sh

sbom: ## List the parts of each image, with versions, licences and hashes (CycloneDX, target/sbom)
	@mkdir -p target/sbom
	@infra/images/sbom.py basin-coordinator coordinator > target/sbom/basin-coordinator.cdx.json
	@infra/images/sbom.py basin-worker-cpu worker,cli infra/libtorch/cpu.txt > target/sbom/basin-worker-cpu.cdx.json
	@infra/images/sbom.py basin-worker-cuda worker,cli infra/libtorch/cpu.txt infra/libtorch/cuda.txt > target/sbom/basin-worker-cuda.cdx.json
	@echo "target/sbom: $$(ls target/sbom | xargs)"

check: setup ## Check format, lints, architecture and the links of documents
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@infra/architecture.sh
	@infra/docs-links.py
	@infra/deny.sh

test: check services ## Everything that CI checks
	@infra/docs-python.sh
	@infra/published/setup.sh
	@$(CARGO) test --locked --workspace
	@infra/test-cpus.sh short

test-cpus: setup services ## Run the tests of all that links libtorch as if on other processors (an hour and more)
	@infra/docs-python.sh
	@infra/published/setup.sh
	@infra/test-cpus.sh

docs: target/tools/mdbook-$(MDBOOK)/bin/mdbook ## Build the documentation as a book in target/book and check its links
	@$< build docs
	@infra/docs-links.py target/book
	@echo "target/book/index.html"

target/tools/mdbook-$(MDBOOK)/bin/mdbook:
	@$(CARGO) install --locked --root target/tools/mdbook-$(MDBOOK) --version $(MDBOOK) --no-default-features --features search mdbook

reference: setup ## Write the reference of commands and parameters from the code
	@$(CARGO) $(PROGRAMS)
	@$(BASIN) reference docs/src/reference

validate: setup ## Heavy checks of the method (planted targets, ordering of methods); writes benchmarks/validation.md
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench validate

study: setup ## The paper's tables and figures on 64 + 64 images (two hours and a half); writes benchmarks/studies/
	@$(CARGO) build --locked --workspace
	@infra/study.sh

chaos: setup services ## 300 faults of 14 kinds during a run of 1000 images (an hour)
	@$(CARGO) build --locked --workspace
	@$(CARGO) test --locked --workspace --test scenarios -- --ignored --nocapture a_long_run

browser: setup ## The dashboard in a real browser (Debian's chromium, and Node)
	@tests/browser/setup.sh
	@$(CARGO) test --locked --workspace --no-run
	@$(CARGO) test --locked --workspace --test coordinator browser -- --ignored

fuzz: ## Feed the reader of checkpoints damaged files for ten minutes (nightly Rust, cargo-fuzz)
	@cd crates/state-dict/fuzz && mkdir -p corpus/parse && $(CARGO) +nightly fuzz run parse corpus/parse ../tests/fixtures seeds -- \
	    -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=10 -max_len=8192 -dict=parse.dict

bench: setup ## Measure lane-steps per second and images per hour
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench speed

bench-authors: setup ## Measure against the authors' own code (PIX2LATENT=checkout PYTHON=with bench/authors/requirements.txt)
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench authors --checkout "$(PIX2LATENT)" --python "$(PYTHON)"

bench-gpu: ## Measure BigGAN-deep-256 on this machine's GPU; without one, infra/gpu/bench.sh --pack
	@infra/gpu/bench.sh

bench-rounding: setup ## Losses of bfloat16, paired over 32 images (half an hour)
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench rounding

bench-parts: setup ## Time the parts one by one: CMA-ES, transforms, codecs, deltas, blending, queue, ledger
	@$(CARGO) bench --locked --profile dev -p bench --bench parts

bench-quality: setup ## The profiles against the paper's, and their ingredients, on 128 images (many hours; what is done stays done)
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench quality

bench-coordinator: setup services ## Measure the coordinator: ImageNet planned and published, 120,000 results at a start, events each second
	@$(CARGO) build --locked --workspace --bins --example publish
	@target/debug/basin-bench coordinator

bench-overhead: setup services ## Measure what a fleet adds to the projection of an image (on a quiet machine)
	@$(CARGO) build --locked --workspace
	@target/debug/basin-bench overhead

bench-dashboard: setup ## Measure the dashboard of a run of 120,000 images
	@$(CARGO) build --locked --workspace
	@target/debug/basin-bench dashboard

bench-editing: setup ## Measure fine-tuning, editability and weight deltas (half an hour)
	@$(CARGO) build --locked --workspace
	@target/debug/basin-bench editing

bench-networks: setup ## Measure the published networks at full size (random weights)
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench networks

throughput: setup services ## Measure messages and objects each second against lapin and the S3 SDK alone
	@$(CARGO) $(BENCH)
	@target/debug/basin-bench fleet

samples: setup ## Make samples/ and benchmarks/data/ again from Fashion-MNIST (Debian: dataset-fashion-mnist)
	@$(CARGO) build --locked --workspace --bin trainer
	@target/debug/trainer samples
	@target/debug/trainer samples --kind centred --after 64 --out benchmarks/data/centred
	@target/debug/trainer samples --kind offcentre --after 128 --out benchmarks/data/offcentre

models: setup ## Train the bundled model from scratch (hours) into target/training and write models/fashion32 and its judge
	@$(CARGO) build --locked --workspace --bin trainer
	@target/debug/trainer classifier
	@target/debug/trainer gan
	@target/debug/trainer export
	@target/debug/trainer directions
	@target/debug/trainer encoder
	@target/debug/trainer judge

clean: ## Remove what was built and the demo's output
	@rm -rf target out
