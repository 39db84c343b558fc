# The commands a person types. Plain `make` lists them.

PYTHON_IN = .venv/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup book pdf test run refresh lab serve bench repository alone versions clean

help: ## List the commands
	@echo "Unrolled: the commands"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  make %-12s%s\n' "$$name" "$$text"; done

setup: ## Set up .venv (every command below does so by itself)
	@sh tools/setup

book: setup ## Re-execute stale chapters, build the site, say where it is
	@echo "Looking for chapters whose outputs are stale."
	@$(PYTHON_IN) -m tools.run --stale
	@echo "Gathering the ledger, the status page and the front page from the chapters."
	@$(PYTHON_IN) -m tools.pages
	@$(PYTHON_IN) -m tools.site build

pdf: setup ## Build the site and print the whole book to one PDF, with a browser
	@$(PYTHON_IN) -m tools.pdf

test: setup ## Run everything that checks the book
	@echo "Checking the style of the code."
	@$(PYTHON_IN) -m ruff check --quiet .
	@echo "Checking the format of the code."
	@$(PYTHON_IN) -m ruff format --check --quiet .
	@echo "Running the tests: the package, the production line, every chapter at quick settings, the site."
	@$(PYTHON_IN) -m pytest -n 2 --dist loadgroup

run: setup ## Execute one chapter at its published settings: make run CHAPTER=01
	@test -n "$$CHAPTER" || { echo "Say which chapter, as in: make run CHAPTER=01" >&2; exit 1; }
	@$(PYTHON_IN) -m tools.run --chapter "$$CHAPTER"
	@$(PYTHON_IN) -m tools.pages

refresh: setup ## Execute every stale chapter in place
	@$(PYTHON_IN) -m tools.run --stale
	@$(PYTHON_IN) -m tools.pages

lab: setup ## Open the chapters in JupyterLab
	@if test -n "$$UNROLLED_DATA"; then UNROLLED_DATA=$$(realpath "$$UNROLLED_DATA") || exit 1; export UNROLLED_DATA; fi; $(PYTHON_IN) -m jupyterlab chapters

serve: setup ## Show the built site in a browser
	@$(PYTHON_IN) -m tools.site serve

bench: setup ## Run every benchmark
	@for file in benchmarks/[!_]*.py; do echo "$$file"; $(PYTHON_IN) "$$file" || exit 1; done

repository: setup ## Point the whole book at another repository: make repository URL=https://github.com/OWNER/NAME
	@test -n "$$URL" || { echo "Say which repository, as in: make repository URL=https://github.com/OWNER/NAME" >&2; exit 1; }
	@$(PYTHON_IN) -m tools.repository "$$URL"

alone: setup ## Run one notebook, or all, as a bare Colab machine would: make alone CHAPTER=01
	@test -n "$$CHAPTER" || { echo "Say which chapter, as in: make alone CHAPTER=01, or CHAPTER=all" >&2; exit 1; }
	@$(PYTHON_IN) -m tools.alone $$CHAPTER

versions: setup ## Test the package with the oldest or newest of what it needs: make versions WHICH=oldest
	@test -n "$$WHICH" || { echo "Say which versions, as in: make versions WHICH=oldest, or WHICH=newest" >&2; exit 1; }
	@$(PYTHON_IN) -m tools.versions "$$WHICH"

clean: ## Remove what was built (.venv stays)
	rm -rf _build .ruff_cache .hypothesis
