# `make demo` and `make test` do all of their own set-up: nothing but Python 3.11+, git and make is expected.
VENV ?= .venv
PYTEST_ARGS ?=

.PHONY: help demo test lint soak docs clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo:  ## the whole pipeline with nothing to configure: watch live features arrive
	@.ci/venv $(VENV) edge
	@$(VENV)/bin/camvec demo

test:  ## every test, against real brokers and RTSP servers
	@.ci/venv $(VENV) edge,text,dev
	@.ci/servers
	$(VENV)/bin/pytest -m "not soak" $(PYTEST_ARGS)

soak:  ## the long tests: minutes, not seconds
	@.ci/venv $(VENV) edge,text,dev
	@.ci/servers
	$(VENV)/bin/pytest -m soak --timeout 3600 $(PYTEST_ARGS)

lint:  ## format, lint, types, import contracts
	@.ci/venv $(VENV) edge,text,dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs:  ## write the generated pages again
	@.ci/venv $(VENV) edge
	$(VENV)/bin/python -m streaming.config.reference > docs/configuration.md

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
