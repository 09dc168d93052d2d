# Every command sets up what it needs by itself: a Python >= 3.11, .venv, the requirements (scripts/setup.py).
# Variables: PYTHON=/path/to/python   HEADLESS=1 (app, demo: ask nothing, open nothing)   PORT=8501 (app)
#            ARGS="..." (test: for pytest; bench: names of benches; soak: of attacks; broken: promises)   PEERS=0 (bench)
#            QUICK=1 (bench, soak)   SCRATCH=/path (bench, soak, broken)

.PHONY: help app demo test check bench soak broken docs clean
.DEFAULT_GOAL := help

python := .venv/bin/python
setup := @sh scripts/python.sh scripts/setup.py
peers := $(if $(filter 0 no false,$(PEERS)),none)
headless := $(if $(filter-out 0 no false,$(HEADLESS)),--headless)

help:
	@echo 'make app               the web app on the bundled run: drag, watch, compare, export'
	@echo 'make app HEADLESS=1    the same, opening no browser; PORT=8600 chooses another port'
	@echo 'make demo              train, merge, measure: a reward-vs-KL front of SmolLM2 (about 10 minutes on 2 cores)'
	@echo 'make demo HEADLESS=1   the same, opening no browser'
	@echo 'make test              the tests; ARGS="-k slerp" passes options to pytest'
	@echo 'make check             format, lint, types, import direction and tests, as in CI'
	@echo 'make bench             measure engine, peers and machine (estimated 30 to 40 minutes on 2 cores); QUICK=1 is a smoke test,'
	@echo '                       PEERS=0 leaves mergekit and TRL out, ARGS="merge front" names benches, SCRATCH=/path'
	@echo 'make soak              every attack of hostile/, two hours of mixed use among them (about 5 hours); QUICK=1 is what the'
	@echo '                       tests run, ARGS="resume headers" names attacks, SCRATCH=/path'
	@echo 'make broken            break copies of the project on purpose: the tests of the README have to notice (about 40 minutes)'
	@echo 'make docs              write the generated parts of README.md and docs/ anew'
	@echo 'make clean             remove .venv, .venv-bench and caches; runs/ stays'
	@echo 'PYTHON=/path/to/python chooses the interpreter (3.11 or newer)'

app:
	$(setup) requirements.txt
	@$(python) -m warp_core app $(headless) $(if $(PORT),--port $(PORT))

demo:
	$(setup) requirements.txt
	@$(python) -m warp_core demo $(headless)

test:
	$(setup) requirements-dev.txt
	@$(python) -m pytest $(ARGS)

check:
	$(setup) requirements-dev.txt
	@$(python) scripts/check.py $(ARGS)

bench:
	$(setup) requirements.txt
	$(if $(peers),,$(setup) requirements-bench.txt)
	@$(python) -m bench $(ARGS) $(if $(QUICK),--quick) $(if $(peers),--peers none) $(if $(SCRATCH),--scratch "$(SCRATCH)")

soak:
	$(setup) requirements-dev.txt
	@$(python) -m hostile $(ARGS) $(if $(QUICK),--quick,--keep) $(if $(SCRATCH),--scratch "$(SCRATCH)")

broken:
	$(setup) requirements-dev.txt
	@$(python) -m hostile.broken $(ARGS) --keep $(if $(SCRATCH),--scratch "$(SCRATCH)")

docs:
	$(setup) requirements-dev.txt
	@$(python) scripts/docs.py

clean:
	rm -rf .venv .venv-bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find warp_core bench tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
