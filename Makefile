# Every target sets itself up: a virtual environment in .venv, torch first, then this package.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

DEFAULT := src/streamavatar/assets/models/people-256
PEOPLE := runs/people
# What `make model` goes on from, for example START=$(DEFAULT) with other people (SEED=2); new weights if empty.
START ?=
SEED ?= 0

BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
PLAIN := $(VENV)/.installed
LIVE := $(VENV)/.installed-live
DEV := $(VENV)/.installed-dev

# apt-get install for root or passwordless sudo; fails quietly where neither is at hand.
APT := sh -c 'command -v apt-get >/dev/null || exit 1; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else exit 1; fi; \
	$$sudo apt-get update -qq >/dev/null && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$@" >/dev/null' apt

.DEFAULT_GOAL := help
.PHONY: help setup system browser demo live test test-slow integration lint bench model clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	|| sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' Makefile

setup: system $(DEV) ## make .venv with the package and its development tools

system: ## install flite and espeak-ng (speech) and Mesa's EGL (rendered people) where apt-get allows it
	@command -v flite >/dev/null || { echo "installing flite"; $(APT) flite; } \
	|| echo "flite is missing and cannot be installed here: tests and training on synthetic speech are skipped"
	@ldconfig -p | grep -q libespeak-ng.so.1 || { echo "installing espeak-ng"; $(APT) espeak-ng; } \
	|| echo "espeak-ng is missing and cannot be installed here: dialogues have fewer voices"
	@ldconfig -p | grep -q libEGL.so.1 && ldconfig -p | grep -q libGL.so.1 && ls /usr/lib/*/dri/swrast_dri.so >/dev/null 2>&1 \
	|| { echo "installing Mesa"; $(APT) libegl1 libgl1 libgl1-mesa-dri; } \
	|| echo "EGL is missing and cannot be installed here: people cannot be rendered"

browser: ## install Chromium for the tests of the live page where apt-get allows it
	@command -v chromium >/dev/null || { echo "installing chromium"; $(APT) chromium; } \
	|| echo "Chromium is missing and cannot be installed here: tests of the page are skipped"

live: $(LIVE) ## start the live server; open http://127.0.0.1:8080/
	$(BIN)/streamavatar live

demo: $(PLAIN) ## render the bundled avatar and dialogue to demo.mp4
	$(BIN)/streamavatar demo

test: system lint ## all quick checks: ruff, mypy, import directions, pytest
	$(BIN)/python -m pytest

test-slow: system $(DEV) ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

integration: system $(DEV) ## every stage of training from nothing, with the smallest recipe (a minute)
	$(BIN)/python -m pytest -m slow tests/recipes -k micro

lint: $(DEV) ## ruff, mypy and import directions alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(PLAIN) ## measure the speed on this machine
	$(BIN)/streamavatar bench

model: system $(DEV) ## train the bundled default from MakeHuman's packs in ASSETS=DIR (hours, resumable) into the package
	@test -n "$(ASSETS)" || { echo "say where MakeHuman's packs are: make model ASSETS=DIR (docs/synthetic-people.md)"; exit 1; }
	$(BIN)/streamavatar data synth --assets $(ASSETS) --seed $(SEED) --hours 1.3 --seconds-per-clip 3.5 --no-gestures \
		--out $(PEOPLE)
	$(BIN)/streamavatar train default --set data=$(PEOPLE) $(if $(START),--set start=$(START))
	rm -rf $(DEFAULT) && mkdir -p $(dir $(DEFAULT)) && cp -r runs/default/model $(DEFAULT)

clean: ## remove .venv, caches, builds and the demo
	rm -rf $(VENV) build dist demo.mp4 demo.json .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON) is missing or older than 3.10: run make with PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "installing python3-venv"; $(APT) python3-venv; } \
	|| { echo "$(PYTHON) cannot make virtual environments: install the package python3-venv as root"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(PLAIN): pyproject.toml | $(BIN)/python
	@echo "installing torch and streamavatar into $(VENV) (minutes, once)"
	@$(PIP) "$(TORCH)"
	@$(PIP) -e .
	@touch $@

$(LIVE): $(PLAIN)
	@echo "installing the live server into $(VENV)"
	@$(PIP) -e ".[live,tts]"
	@touch $@

$(DEV): $(PLAIN)
	@echo "installing the development tools into $(VENV)"
	@$(PIP) -e ".[dev]"
	@touch $@
