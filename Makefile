# demo test check bench docs weights: each builds the virtual environment it needs, once.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# As many processes as cores, four at most (each takes 1.5 GB); a file's tests stay together, for what they
# share, and files go in order: the long ones are not among the last.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check bench docs weights clean

demo: $(READY)
	$(BIN)/diffinf demo

test: $(READY)
	$(PYTEST)

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

# What needs nothing but the machine; `make bench DATA=fer2013_ferplus.parquet` runs the one on photographs too
# (benchmarks/README.md says how to build that file).
bench: $(READY)
	$(BIN)/python benchmarks/influence.py
	$(if $(DATA),$(BIN)/python benchmarks/fer_noise.py --data $(DATA),@echo "no DATA=...: FER-noise was left out")

# The pictures of the documentation.
docs: $(READY)
	$(BIN)/python docs/pictures.py

# The weights for rendered faces that the package carries.
weights: $(READY)
	$(BIN)/python benchmarks/rendered_weights.py

# An environment that is there is kept and completed; packages come from the lock file, by hash.
$(READY): requirements.lock pyproject.toml
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
	  echo "setting up $(VENV) with uv: some minutes and about 6 GB the first time"; \
	  test -x $(BIN)/python || uv venv --quiet --python '>=3.11,<3.14' $(VENV); \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --quiet --require-hashes -r requirements.lock; \
	  VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install --quiet --no-deps -e .; \
	else \
	  python=; \
	  for candidate in python3.12 python3.11 python3.13 python3 python; do \
	    if $$candidate -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	      >/dev/null 2>&1; then python=$$candidate; break; fi; \
	  done; \
	  if test -z "$$python" && ! test -x $(BIN)/python; then \
	    echo "diffinf needs Python 3.11, 3.12 or 3.13 with its venv module, and found none." >&2; \
	    echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv), or install uv." >&2; \
	    exit 2; \
	  fi; \
	  echo "setting up $(VENV) with pip: some minutes and about 6 GB the first time"; \
	  test -x $(BIN)/python || $$python -m venv $(VENV); \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null; \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	  $(BIN)/python -m pip install --quiet --no-deps -e .; \
	fi; \
	touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
