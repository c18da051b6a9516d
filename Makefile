# `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help demo demo-stop test lint e2e e2e-bugs bench bench-images

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

demo: ## From a clone to a running virtual machine (goes on running; in CI it is stopped at the end)
	@scripts/demo

demo-stop: ## Stop what `make demo` started
	@scripts/demo stop

test: ## Every test that belongs with a change; the last line is "N passed, N failed"
	@scripts/test

e2e: ## The scenarios: `make e2e JOBS=4 [SCENARIO=a,b] [LIST=1] [API=standalone] [RELEASE=1]`
	@scripts/e2e $(if $(LIST),--list) $(if $(JOBS),--jobs $(JOBS)) $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(API),--api $(API))

e2e-bugs: ## Puts back each of the four bugs that the project was born from, and sees its scenario fail
	@scripts/e2e-bugs

lint: ## Formatting and lints, as errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cd e2e/controlplane && test -z "$$(gofmt -l .)" && go vet ./...

bench: ## Measure starts, adoption, memory and the API (numbers, no tests)
	@scripts/bench agent

bench-images: ## Measure image builds beside skopeo + umoci, buildah, podman and a floor: `make bench-images [ROUNDS=5]`
	@scripts/bench images --plot docs/performance-images.svg $(if $(ROUNDS),--rounds $(ROUNDS))
