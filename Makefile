# `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help demo demo-stop test e2e bench lint

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

demo: ## From a clone to a running virtual machine (goes on running; in CI it is stopped at the end)
	@scripts/demo

demo-stop: ## Stop what `make demo` started
	@scripts/demo stop

test: ## Every test that belongs with a change; the last line is "N passed, N failed"
	@scripts/test

JOBS ?= 4
e2e: ## The scenarios: JOBS=4, SCENARIO=a,b, LIST=1
	@scripts/e2e --jobs $(JOBS) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(LIST),--list)

bench: ## Measurements (not tests)
	@scripts/bench

lint: ## Formatting and lints, as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cd e2e/controlplane && test -z "$$(gofmt -l .)" && go vet ./...
