# Everything that is done with this checkout. On a fresh machine only Python 3.11+ and make are needed:
# uv is put into .tools, all else into .venv.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
RUN := $(UV) run --no-sync
export UV_PYTHON_DOWNLOADS := never
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo demo-two test check conformance coverage fuzz chaos format docs bench screenshot clean
.DEFAULT_GOAL := test

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check "uv>=0.9"

.venv/ready: pyproject.toml uv.lock | $(filter .tools/%,$(UV))
	$(UV) sync --frozen --all-extras --python $(PYTHON)
	@touch $@

# The chat. With BROKER=redis://localhost its rooms are there, else in the memory of the process.
demo: .venv/ready
	$(RUN) python examples/chat/serve.py

# The same by two workers on two ports, with nothing between them but a broker: a Valkey of its own.
demo-two: .venv/ready
	$(RUN) python examples/chat/two.py

test: .venv/ready
	$(RUN) pytest -n 4 --dist worksteal

format: .venv/ready
	$(RUN) ruff check --fix
	$(RUN) ruff format

check: .venv/ready
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy
	$(RUN) pyright
	$(RUN) lint-imports

# Every module is covered, lines and branches, by the test file that bears its name.
coverage: .venv/ready
	@for module in $(filter-out %__init__.py %__main__.py,$(patsubst src/yaat/%,%,$(wildcard src/yaat/*.py src/yaat/*/*.py src/yaat/*/*/*.py))); do \
	  $(RUN) coverage run -m pytest -q -p no:cacheprovider tests/test_$$(echo $$module | tr / _) && \
	  $(RUN) coverage report --include=src/yaat/$$module --fail-under=100 || exit 1; \
	done

# All of Autobahn's cases against a real server, on both loops; some minutes. Writes its page.
conformance: .venv/ready
	PYTHONPATH=tests $(RUN) python -m conformance

# Random bytes against what reads bytes, for so many seconds in all. What was found stays in .fuzz.
FUZZ_SECONDS ?= 60
fuzz: .venv/ready
	$(UV) sync --quiet --frozen --inexact --all-extras --group fuzz
	PYTHONPATH=tests $(RUN) python -m fuzz --seconds $(FUZZ_SECONDS)

# Kills, freezes and cuts off what carries the channels, ours and others'; says what got lost. 4 min.
CHAOS ?=
chaos: .venv/ready
	PYTHONPATH=tests $(RUN) python -m chaos $(CHAOS)

docs: .venv/ready
	$(RUN) mkdocs build --strict

bench: .venv/ready
	$(RUN) python -m benchmarks

screenshot: .venv/ready
	YAAT_SCREENSHOT=docs/images/demo.png $(RUN) pytest tests/test_demo.py -k picture

clean:
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis site dist
