# Everything one does with this checkout. `make help` lists it.
#
# The targets work on a fresh Debian 12 or 13 machine: what they install or change, they say first. Tools for development
# go into .venv; only the lab (demo, test, molecule, bench, soak) needs root, because it boots hosts.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Named explicitly, so that it also applies where Ansible is started from another directory.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONDONTWRITEBYTECODE := 1

VENV := .venv
PEERS_VENV := build/peers
BIN := $(VENV)/bin
LAB := inventories/lab
LAB_PROGRAM := roles/lab/files/hearth_lab.py
# Makes throwaway keys and secrets for the lab and the example fleet, outside version control.
LAB_SECRETS ?= $(BIN)/python tools/lab_secrets.py
# Prints what runs where and how to open it; writes build/demo.json.
DEMO_TABLE ?= $(BIN)/python tools/demo_table.py
PYTEST ?= $(BIN)/python -m pytest
# What a molecule scenario verifies on its own hosts is run by that scenario.
SCENARIO_TESTS := $(patsubst %,--ignore=tests/integration/%,$(notdir $(patsubst %/molecule.yml,%,$(wildcard molecule/*/molecule.yml))))
PLAYBOOK := $(BIN)/ansible-playbook -i $(LAB)

# Python files outside the collection's own packages that are type-checked as programs.
PROGRAMS := $(LAB_PROGRAM) roles/lab/files/lablib
PACKAGES := module_utils plugin_utils
# Every file that git knows and that a POSIX shell or bash runs.
SHELL_SCRIPTS = $$(git grep --untracked -lIE '^\#!.*[/ ](ba)?sh$$')

.PHONY: help
help: ## list the targets
	@echo "make TARGET, with TARGET one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- what is needed ---------------------------------------------------------------------------------------------------

# The first Python that is new enough. Looked up when a recipe needs it, so that `make help` works without any.
FIND_PYTHON = for python in $${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do \
	if command -v "$$python" >/dev/null && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then command -v "$$python"; break; fi; done

.PHONY: system
# Python, git and ssh from Debian. Nothing is installed when they are there.
system:
	@missing=(); python="$$($(FIND_PYTHON))"; \
	{ [ -n "$$python" ] && "$$python" -c 'import ensurepip, venv' 2>/dev/null; } || missing+=(python3 python3-venv); \
	command -v git >/dev/null || missing+=(git); \
	command -v ssh >/dev/null || missing+=(openssh-client); \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "error: this needs $${missing[*]} (Python 3.11 or newer). On Debian: apt-get install $${missing[*]}" >&2; \
			exit 1; \
		fi; \
		echo "Installing the Debian packages $${missing[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update; \
		apt-get -qq -o Dpkg::Use-Pty=0 --yes --no-install-recommends install "$${missing[@]}" >/dev/null; \
	fi; \
	python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then \
		echo "error: Python 3.11 or newer is needed, found $$(python3 --version 2>&1). Debian 12 and 13 have it." >&2; exit 1; \
	fi

# Two steps, so that the demo does not wait for what only the tests need.
$(VENV)/.runtime: requirements.txt | system
	@echo "Installing the controller's Python packages (requirements.txt) into $(VENV): about a minute"
	@test -x $(BIN)/python || "$$($(FIND_PYTHON))" -m venv $(VENV)
	@$(BIN)/python -m pip --disable-pip-version-check install --progress-bar off -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "Installing the test tools (requirements-dev.txt) into $(VENV)"
	@$(BIN)/python -m pip --disable-pip-version-check install --progress-bar off -r requirements-dev.txt
	@touch $@

.PHONY: venv
venv: $(VENV)/.dev ## make .venv with everything the other targets use

.PHONY: lab-tools
# Before Ansible, so that the long steps (packages, image) print their progress as they go.
lab-tools: | system
	@"$$($(FIND_PYTHON))" $(LAB_PROGRAM) prepare

# --- the demo ---------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: ## boot two Debian 13 hosts on this machine, converge them, and print what runs
	@"$(MAKE)" --silent lab-tools
	@"$(MAKE)" --silent $(VENV)/.runtime
	@mkdir -p build
	@echo "== 1/5 Booting the lab"
	@$(PLAYBOOK) playbooks/lab_up.yml
	@echo "== 2/5 Making throwaway secrets"
	@$(LAB_SECRETS) --prepare $(LAB)
	@$(PLAYBOOK) playbooks/secrets.yml
	@$(LAB_SECRETS)
	@echo "== 3/5 Converging both hosts (packages are installed now: some minutes the first time)"
	@$(PLAYBOOK) site.yml
	@echo "== 4/5 Again for the forge group: nothing must change"
	@$(PLAYBOOK) -l forge site.yml | tee build/demo-second-run.log
	@if grep -E '^[^ ]+ +: ok=' build/demo-second-run.log | grep -v -E ' changed=0 .* failed=0 '; then \
		echo "error: the second run changed something on the hosts above" >&2; exit 1; fi
	@echo "== 5/5 What runs"
	@$(DEMO_TABLE)

.PHONY: demo-down
demo-down: ## shut the lab down and restore what it changed; images and packages stay cached
	@"$$($(FIND_PYTHON))" $(LAB_PROGRAM) down --link build/lab

.PHONY: labs-down
labs-down: ## shut every lab down, also those that an aborted test left
	@"$$($(FIND_PYTHON))" $(LAB_PROGRAM) down --all

# --- your own machines ------------------------------------------------------------------------------------------------

INVENTORY ?= inventories/homelab

.PHONY: secrets
secrets: $(VENV)/.runtime ## make missing secrets: make secrets INVENTORY=inventories/mine [CHECK=1] [ROTATE=sonarr/api_key] [LIMIT=forge]
	@$(BIN)/ansible-playbook -i "$(INVENTORY)" playbooks/secrets.yml \
		$(if $(CHECK),--check) $(if $(ROTATE),-e rotate="$(ROTATE)") $(if $(LIMIT),-l "$(LIMIT)")

# --- checks -----------------------------------------------------------------------------------------------------------

.PHONY: test
test: ## everything CI runs: lint, unit tests, integration tests and molecule scenarios on disposable hosts
	@"$(MAKE)" --silent lab-tools
	@"$(MAKE)" --silent lint
	@mkdir -p build
	@"$(MAKE)" --silent $(READERS)/.stamp
	@echo "== unit and integration tests, molecule scenarios"
	@$(LAB_SECRETS)
	@PATH="$(CURDIR)/$(READERS)/usr/bin:$$PATH" $(PYTEST) tests/unit tests/integration $(SCENARIO_TESTS) $(PYTEST_ARGS)

.PHONY: lint
# All of them, also when one fails: one run shows everything there is to mend. Sanity takes longest, on one processor: it
# runs beside the others.
lint: $(VENV)/.dev ## ansible-lint, ansible-test sanity, yamllint, ruff, mypy, shellcheck, stale pages, secrets
	@mkdir -p build; $(BIN)/python tools/sanity.py >build/sanity.log 2>&1 & sanity=$$!; \
	sanity() { wait "$$sanity" && echo "nothing found (build/sanity.log)" || { cat build/sanity.log; return 1; }; }; \
	failed=(); check() { echo "== $$1"; shift; "$$@" || failed+=("$$1"); }; \
	check "ruff check" $(BIN)/ruff check .; \
	check "ruff format" $(BIN)/ruff format --check .; \
	check "mypy --strict, the collection" \
		$(BIN)/mypy $(foreach package,$(PACKAGES),-p ansible_collections.hearth.homelab.plugins.$(package)); \
	check "mypy --strict, the lab" $(BIN)/mypy $(PROGRAMS); \
	check "yamllint" $(BIN)/yamllint --strict --config-file .config/yamllint.yml .; \
	check "ansible-lint" env PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --config-file .config/ansible-lint.yml; \
	check "shellcheck" $(BIN)/shellcheck $(SHELL_SCRIPTS); \
	check "generated pages" $(BIN)/python tools/make_docs.py --check; \
	check "changelog" env PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/antsibull-changelog lint; \
	check "secrets" $(BIN)/python tools/secret_scan.py; \
	check "reasons of ignores" $(BIN)/python tools/ignores.py; \
	check "ansible-test sanity" sanity; \
	if [ "$${#failed[@]}" -gt 0 ]; then echo "error: lint failed" >&2; exit 1; fi

.PHONY: docs-pages
docs-pages: $(VENV)/.dev ## write the generated pages: reference, alerts, READMEs of roles, JSON Schemas
	@$(BIN)/python tools/make_docs.py

$(VENV)/.docs: requirements-docs.txt $(VENV)/.dev
	@echo "Installing the site's builder (requirements-docs.txt) into $(VENV)"
	@$(BIN)/python -m pip --disable-pip-version-check install --progress-bar off -r requirements-docs.txt
	@touch $@

.PHONY: docs
docs: $(VENV)/.docs ## build the site into build/docs; a link that leads nowhere is an error
	@"$(MAKE)" --silent docs-pages
	@$(BIN)/mkdocs build --quiet --strict

.PHONY: pin
pin: $(VENV)/.runtime ## lock the roles' images by digest, as their registries answer: make pin ROLE=sonarr CHECK=1
	@$(BIN)/python tools/pin_images.py $(if $(ROLE),--role "$(ROLE)") $(if $(CHECK),--check) $(PIN_ARGS)

.PHONY: changelog
changelog: $(VENV)/.dev ## make CHANGELOG.md from changelogs/fragments for the version in galaxy.yml
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/antsibull-changelog release

.PHONY: format
format: $(VENV)/.dev ## let ruff format the Python files
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Debian's own caddy, promtool and amtool read what the renderers write. They are unpacked, never installed: installing
# would start them. Without apt-get (macOS) those tests say that they are skipped.
READERS := build/readers
$(READERS)/.stamp:
	@mkdir -p $(READERS)
	@if command -v apt-get >/dev/null; then \
		echo "Unpacking Debian's caddy, prometheus and prometheus-alertmanager into $(READERS)"; \
		cd $(READERS) && { apt-get --quiet=2 download caddy prometheus prometheus-alertmanager || \
			{ apt-get --quiet=2 update && apt-get --quiet=2 download caddy prometheus prometheus-alertmanager; }; } && \
		for deb in *.deb; do dpkg-deb --extract "$$deb" . ; done && rm -f -- *.deb; \
	fi
	@touch $@

.PHONY: unit
unit: $(VENV)/.dev $(READERS)/.stamp ## unit tests: no root, no network
	@PATH="$(CURDIR)/$(READERS)/usr/bin:$$PATH" $(PYTEST) tests/unit $(PYTEST_ARGS)

.PHONY: integration
integration: $(VENV)/.dev ## integration tests on disposable hosts, with the molecule scenarios
	@"$(MAKE)" --silent lab-tools
	@$(LAB_SECRETS)
	@$(PYTEST) tests/integration $(SCENARIO_TESTS) $(PYTEST_ARGS)

.PHONY: molecule
molecule: $(VENV)/.dev ## one molecule scenario on disposable hosts: make molecule SCENARIO=default
	@if [ -z "$(SCENARIO)" ]; then \
		echo "error: say which: make molecule SCENARIO=$$(ls molecule 2>/dev/null | tr '\n' '|')" >&2; exit 1; fi
	@"$(MAKE)" --silent lab-tools
	@$(LAB_SECRETS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test --scenario-name "$(SCENARIO)"

BENCH_LAB := build/bench/inventories/lab
BENCH_DOWN = "$$($(FIND_PYTHON))" $(LAB_PROGRAM) down --name bench --link build/bench/build/lab >/dev/null

$(PEERS_VENV)/.stamp: tests/benchmark/requirements-peers.txt $(VENV)/.runtime
	@echo "Installing pyinfra (tests/benchmark/requirements-peers.txt) into $(PEERS_VENV)"
	@$(BIN)/python -m venv $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip --disable-pip-version-check install --progress-bar off --quiet -r $<
	@touch $@

.PHONY: bench
# A lab of its own beside the demo's, taken down also when something fails. The ten hosts are converged a few at a time.
bench: $(VENV)/.dev $(if $(PEERS),$(PEERS_VENV)/.stamp) ## measure the budgets; PEERS=1 also other tools (10 minutes)
	@"$(MAKE)" --silent lab-tools
	@mkdir -p build
	@down() { $(BENCH_DOWN); }; trap down EXIT; \
	echo "Booting 13 hosts and converging them, then measuring: some minutes"; \
	run() { log="build/bench-$$1.log"; shift; "$$@" >"$$log" 2>&1 || { cat "$$log"; exit 1; }; }; \
	run fleet $(BIN)/python tests/benchmark/fleet.py; \
	run lab $(BIN)/ansible-playbook -i $(BENCH_LAB) playbooks/lab_up.yml -e lab_link="$(CURDIR)/build/bench/build/lab"; \
	for fleet in forge many ten; do \
		run "$$fleet" $(BIN)/ansible-playbook -i build/bench/inventories/$$fleet --forks 3 site.yml; done; \
	$(BIN)/python tests/benchmark/bench.py $(if $(PEERS),--peers)

SOAK_KILLS ?= 200
.PHONY: soak
# A lab of its own, taken down also when something fails. A kill takes about ten seconds.
soak: $(VENV)/.dev ## kill SOAK_KILLS (200) runs at random on a host of its own: it must always be wholly old or new
	@"$(MAKE)" --silent lab-tools
	@$(BIN)/python tools/test_site.py soak >/dev/null
	@down() { "$$($(FIND_PYTHON))" $(LAB_PROGRAM) down --name soak --link build/soak/build/lab >/dev/null; }; trap down EXIT; \
	"$$($(FIND_PYTHON))" $(LAB_PROGRAM) up --name soak --link build/soak/build/lab lab-forge >/dev/null; \
	$(BIN)/python tests/integration/kills/soak.py build/soak soak --kills $(SOAK_KILLS)

ROLES_DOWN = "$$($(FIND_PYTHON))" $(LAB_PROGRAM) down --name roles --link build/roles/build/lab >/dev/null
.PHONY: roles
# A lab of its own, taken down also when something fails.
roles: $(VENV)/.dev ## every role by itself, one after the other on one host (half an hour): make roles [ROLES="redis sonarr"]
	@"$(MAKE)" --silent lab-tools
	@$(BIN)/python tools/test_site.py roles >/dev/null
	@: # A run that was killed leaves its host with a role on it: down comes first.
	@down() { $(ROLES_DOWN); }; down; trap down EXIT; \
	subnet="$$(sed -n 's/^ *lab_subnet: //p' build/roles/inventories/lab/hosts.yml)"; \
	"$$($(FIND_PYTHON))" $(LAB_PROGRAM) up --name roles --subnet "$$subnet" --link build/roles/build/lab lab-forge >/dev/null; \
	$(BIN)/python tests/integration/role/every.py build/roles $(ROLES)

.PHONY: collection
collection: $(VENV)/.runtime ## build the collection's tarball into build/
	@mkdir -p build
	@$(BIN)/ansible-galaxy collection build --force --output-path build .
