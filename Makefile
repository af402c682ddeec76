# make demo · make test · make check · make faults · make experiment: each builds .venv by itself
# when it must.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# JAX needs 3.12 or newer, ScaNN has no wheel past 3.13; Debian may leave ensurepip out.
FITS := 'import ensurepip, sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))'

.PHONY: demo test check faults experiment format lock clean

demo: $(READY)
	$(BIN)/sbp bootstrap --gin_file=experiments/pydocs.gin

test: $(READY)
	# What a module makes once for its tests is made once: a module stays with one worker.
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadscope --no-loadscope-reorder \
		--durations=30 --durations-min=4

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Processes that write one corpus are killed at random, for minutes: make faults KILLS=1000
KILLS := 200
faults: $(READY)
	$(BIN)/python tests/faults/synthesize.py --kills=$(KILLS)

# The evidence: a night on two cores. Cut off, it goes on where it was.
TEXTS := pyfunctions_hours translations_hours
EVIDENCE := concept_world_minutes concept_world_hours $(TEXTS) concept_world_sweeps
experiment: $(READY)
	for name in $(TEXTS); do \
		$(BIN)/sbp vocab --scope=vocab --gin_file=evidence/$$name.gin || exit; \
		for split in real dev heldout oracle; do \
			$(BIN)/sbp cache --scope=rows/$$split --gin_file=evidence/$$name.gin || exit; \
		done; \
	done
	for name in $(EVIDENCE); do \
		$(BIN)/sbp experiment --gin_file=evidence/$$name.gin || exit; \
	done
	$(BIN)/sbp results --replace $(EVIDENCE:%=runs/%/experiment)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A venv that is half built has no .ready, and is built again from the start.
$(READY): requirements.lock pyproject.toml .python-version
	@for python in $(PYTHON) python3.12 python3.13 python3 python; do \
		"$$python" -c $(FITS) 2>/dev/null && rm -rf $(VENV) && exec "$$python" -m venv $(VENV); \
	done; \
	echo "make: no Python 3.12 or 3.13 with venv on PATH: install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

# The exact versions of everything, without any download address; needs uv.
lock:
	uv pip compile --quiet --universal --python-version 3.12 --no-header --no-emit-index-url \
		--generate-hashes --extra dev --extra evidence pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) runs
