# make demo   installs everything into .venv/ and runs the main job
# make test   installs everything, Chromium from Debian's packages where it may, and runs the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
CODE := curate pipelines schemas train tests infra docs

.PHONY: demo test docs check format bench bench-gpu lock install peers chromium
install: .venv/.installed

.venv/.installed: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	touch $@

# other programs that infra/bench compares with, in an environment of their own
peers: .venv-peers/.installed

.venv-peers/.installed: infra/bench/peers.txt | install
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	$(BIN)/uv pip install --quiet --python .venv-peers/bin/python -r $<
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python pipelines/demo.py

# for the browser tests; where it cannot be had, they are skipped and say so
chromium:
	infra/install_chromium.sh

test: install chromium
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

# the documentation as a site, every warning being an error
docs: install
	$(BIN)/python -m sphinx -W -n --keep-going -d runs/docs/trees -b html docs runs/docs/html

check: install
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: install
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: install peers
	$(BIN)/python infra/bench/near_duplicates.py
	$(BIN)/python infra/bench/semantic.py
	$(BIN)/python infra/bench/dedup_step.py
	$(BIN)/python infra/bench/dedup_skew.py
	$(BIN)/python infra/bench/dedup_at_scale.py
	$(BIN)/python infra/bench/crawl.py
	$(BIN)/python infra/bench/dump_ingest.py
	$(BIN)/python infra/bench/decode.py
	$(BIN)/python infra/bench/ingest_embed.py
	$(BIN)/python infra/bench/dashboard.py
	$(BIN)/python infra/bench/data_order.py
	$(BIN)/python infra/bench/train_data.py
	$(BIN)/python infra/bench/train_step.py
	$(BIN)/python infra/bench/captions.py
	$(BIN)/python infra/bench/scores.py
	$(BIN)/python infra/bench/selection.py
	$(BIN)/python infra/bench/export.py

# on one GPU, what docs/training_speed.md has and what it lacks
FAST = --channels_last --fused_kernels --cuda_graphs
bench-gpu: install
	$(BIN)/python -m pytest tests/train/test_speed.py tests/train/test_engine.py
	$(BIN)/python infra/bench/train_step.py --micro_batch 8 12 $(FAST)
	$(BIN)/python infra/bench/train_step.py --micro_batch 16 --ways engine plain $(FAST)
	$(BIN)/python infra/bench/train_step.py --micro_batch 8 12 --model refiner $(FAST)
	$(BIN)/python infra/bench/train_step.py --micro_batch 8 --bucket 832x1216 640x1536 $(FAST)
	$(BIN)/python infra/bench/train_step.py --micro_batch 8 --ways engine --zero_stage 2 $(FAST)
	$(BIN)/python infra/bench/train_step.py --micro_batch 2 --each_switch
	$(BIN)/python infra/bench/gpu_profile.py

# after a change of pyproject.toml
lock: install
	$(BIN)/uv pip compile --quiet --upgrade pyproject.toml --extra demo --extra dev --extra bench --python-version 3.11 -o requirements.lock
