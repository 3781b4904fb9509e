# make demo: train and route a small stack on real text.  make inspect: look into it in a browser.
# make gallery: every figure and page from the committed runs.  make figures: the same for a paper.
# make book: all notebooks as HTML.
# make test: everything CI checks.  make faults: the whole campaign of faults, half an hour.
# make bench: how fast it is beside what one would otherwise use.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo
PORT := 8866
INSPECT :=
NOTEBOOKS := $(wildcard notebooks/[0-9][0-9]_*.ipynb)
export TOKENIZERS_PARALLELISM := false
# A folder whose name a user gives or chose for the checkout reaches a command as "$$DEMO" and "$$BIN",
# never pasted into its text, so that spaces and quotes do no harm.
export BIN DEMO

.PHONY: help faults demo inspect picture gallery figures bench book lint test clean

help:
	@grep -h "^# make" Makefile | sed "s/^# //"

.venv/.installed: pyproject.toml requirements.txt requirements-embedded.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e '.[inspect,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-embedded.txt
	touch $@

# A line for each skill as soon as it is learned; a kernel's warning about local sockets is left out.
demo: .venv/.installed
	@mkdir -p "$$DEMO"
	@echo "Training a stack on four small tasks, a line each (notebooks/01_train_stack.ipynb) ..."
	@set -o pipefail; "$$BIN"/python -m papermill notebooks/01_train_stack.ipynb "$$DEMO"/01_train_stack.ipynb \
		-p preset demo4 -p model minilm -p n_train 64 -p epochs 5 -p max_length 48 \
		-r output_dir "$$DEMO" \
		--no-progress-bar --log-level ERROR --stdout-file - 2>&1 | sed -u "/Kernel is running over TCP/d"
	@"$$BIN"/python -c "import sys; from skillstack_helpers.lab import experiment as e; \
		folder, more = e.newest_stack(sys.argv[1]), ['centroid', 'scaffold_blind']; \
		e.stack_routers(e.open_stack(folder), folder, more=more, save=True)" "$$DEMO" # to inspect
	@echo; "$$BIN"/python results/report show "$$DEMO"

# A page of its own; the stack that was saved last below $(DEMO), which is trained if there is none.
# INSPECT="--model gpt2" for a stack on another model than the packaged ones; --anywhere, other folders.
inspect: .venv/.installed
	@ls "$$DEMO"/*/stack/stack.json >/dev/null 2>&1 || $(MAKE) demo
	@"$$BIN"/python -m skillstack_helpers.lab.widgets "$$DEMO" --port $(PORT) $(INSPECT)

# The README's picture of it, by the browser test on the demo stack.
picture: .venv/.installed
	SKILLSTACK_DEMO="$$DEMO" "$$BIN"/python -m pytest tests/test_browser.py -k api

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

# Files side by side (of some, tests), each on one thread, in the order of tests/conftest.py.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

# Corrupted files, kill -9, races, refusing disks and bad input; goes on where it was stopped.
faults: .venv/.installed
	OMP_NUM_THREADS=1 "$$BIN/python" tests/faults $(FAULTS)

gallery: .venv/.installed
	$(BIN)/python results/report gallery

# Figures as PNG and PDF and tables as Markdown and LaTeX, in paper/, from the committed runs.
figures: .venv/.installed
	"$$BIN"/python -m papermill notebooks/12_paper_figures.ipynb paper.ipynb -p output_dir paper
	mkdir -p paper && mv paper.ipynb paper/

# One table of ratios, benchmarks/bench.md; BENCH="--rows mixed answer" measures some rows alone.
bench: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py $(BENCH)

# Every notebook, executed (hours without a GPU; BOOK="-p n_train 8" makes it shorter), as HTML.
book: .venv/.installed
	mkdir -p book
	for notebook in $(NOTEBOOKS); do \
		"$$BIN"/python -m papermill $$notebook book/$$(basename $$notebook) $(BOOK) || exit 1; \
	done
	"$$BIN"/python -m nbconvert --to html book/*.ipynb

clean:
	rm -rf .venv "$$DEMO"
