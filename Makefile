# make demo: train and route a small stack on real text.  make test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint readme clean

.venv/.installed: pyproject.toml requirements.txt requirements-embedded.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-embedded.txt
	touch $@

demo: .venv/.installed
	mkdir -p $(DEMO)
	$(BIN)/papermill notebooks/01_train_stack.ipynb $(DEMO)/01_train_stack.ipynb \
		-p preset mini4 -p model minilm -p output_dir $(DEMO)
	@$(BIN)/python -m skillstack_helpers.results show $(DEMO)
	@echo "notebook  $(CURDIR)/$(DEMO)/01_train_stack.ipynb"

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

test: lint
	$(BIN)/python -m pytest

readme: .venv/.installed
	$(BIN)/python -m skillstack_helpers.results readme

clean:
	rm -rf .venv $(DEMO)
