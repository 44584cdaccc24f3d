# Tasks of a developer; each is one or two ordinary commands.
.PHONY: setup test slow lint types docs bench lowest newest coverage

PYTHON ?= python

setup:  ## install the package with everything that development needs, in the versions of constraints.txt
	$(PYTHON) -m pip install -e '.[dev]' -c constraints.txt

test:  ## default tests: under 6 minutes on two cores
	$(PYTHON) -m pytest

slow:  ## tests that take minutes, as CI runs them
	$(PYTHON) -m pytest -m slow

lint:  ## style and format
	ruff check .
	ruff format --check .

types:  ## static types of the package
	mypy

docs:  ## charts and reports in docs/, from the measurements that ship with the package
	$(PYTHON) docs/performance_chart.py
	for study in cpu h100 h200; do $(PYTHON) -m w2v_lightning study report w2v_lightning/catalog/measurements/$$study --markdown docs/study/$$study.md; done

bench:  ## training steps beside stock transformers, on this machine
	$(PYTHON) -m w2v_lightning bench step

coverage:  ## lines that no default test runs
	$(PYTHON) -m pytest --cov=w2v_lightning --cov-report=term-missing:skip-covered

constraints.txt: pyproject.toml  ## versions that development and CI use
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate --no-header --output-file $@

lowest:  ## default tests with the lowest releases that pyproject.toml allows, in .venv-lowest
	uv venv --clear --python 3.11 .venv-lowest
	uv pip install --python .venv-lowest -e '.[dev]' --resolution lowest-direct
	.venv-lowest/bin/python -m pytest

newest:  ## default tests with the newest releases that pyproject.toml allows, in .venv-newest
	uv venv --clear --python 3.11 .venv-newest
	uv pip install --python .venv-newest -e '.[dev]' --upgrade
	.venv-newest/bin/python -m pytest
