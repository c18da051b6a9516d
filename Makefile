# `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help demo demo-stop test lint

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

demo: ## From a clone to a running virtual machine (goes on running; in CI it is stopped at the end)
	@scripts/demo

demo-stop: ## Stop what `make demo` started
	@scripts/demo stop

test: ## Every test that belongs with a change; the last line is "N passed, N failed"
	@scripts/test

lint: ## Formatting and lints, as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cd e2e/controlplane && test -z "$$(gofmt -l .)" && go vet ./...
