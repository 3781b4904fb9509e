# make demo: train and route a small stack on real text.  make inspect: look into it in a browser.
# make test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo
PORT := 8866
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo inspect picture lint test readme clean

help:
	@grep -h "^# make" Makefile | sed "s/^# //"

.venv/.installed: pyproject.toml requirements.txt requirements-embedded.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e '.[inspect,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-embedded.txt
	touch $@

demo: .venv/.installed
	mkdir -p $(DEMO)
	$(BIN)/papermill notebooks/01_train_stack.ipynb $(DEMO)/01_train_stack.ipynb \
		-p preset mini4 -p model minilm -p output_dir $(DEMO)
	@$(BIN)/python results/report.py show $(DEMO)
	@echo "notebook  $(CURDIR)/$(DEMO)/01_train_stack.ipynb"

# The notebook with its parameters, served on loopback; Voilà prints the address.
inspect: .venv/.installed
	@ls $(DEMO)/*/stack/stack.json >/dev/null 2>&1 || $(MAKE) demo
	@ls $(DEMO)/*/stack/routers/*/router.json >/dev/null 2>&1 || $(BIN)/python -c \
		"from skillstack_helpers.lab import experiment as e; f = e.newest_stack('$(abspath $(DEMO))'); \
		e.stack_routers(e.open_stack(f), f)"
	$(BIN)/papermill --prepare-only --log-level WARNING notebooks/11_inspect_frames.ipynb \
		$(DEMO)/11_inspect_frames.ipynb -p output_dir $(abspath $(DEMO))
	$(BIN)/voila $(DEMO)/11_inspect_frames.ipynb --Voila.ip=127.0.0.1 --port=$(PORT) --no-browser

# The README's first picture, by the browser test on the demo stack.
picture: .venv/.installed
	SKILLSTACK_DEMO=$(abspath $(DEMO)) $(BIN)/python -m pytest tests/test_browser.py -k api

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

test: lint
	$(BIN)/python -m pytest

readme: .venv/.installed
	$(BIN)/python results/report.py readme

clean:
	rm -rf .venv $(DEMO)
