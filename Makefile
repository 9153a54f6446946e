# make test is all a fresh checkout needs: it makes .venv first. PYTHON=python3.12 chooses another Python.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS := benchmarks/results
SYSTEM_PACKAGES := pulseaudio pulseaudio-utils libportaudio2 libasound2-plugins xvfb xdotool chromium nginx-light
SAMPLE := samples/librispeech-2412-153954-0000.flac
CHECKPOINT := training/checkpoints/onebest-en.pt
LANGUAGE_MODEL := training/checkpoints/onebest-en-lm.pt
# What is done at once in the distillation table.
JOBS ?= 2

.PHONY: setup system test test-edge test-aarch64 lint format types imports check bench bench-wer bench-decode bench-mic bench-loss bench-model bench-edge bench-serve bench-sizes bench-kd tables model model-small wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@

# What the tests of microphones, windows and pages need beside Python's packages: Debian's, so as root.
system:
	dpkg -s $(SYSTEM_PACKAGES) > /dev/null 2>&1 || { \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES); \
	}

test: $(STAMP)
	$(BIN)/pytest

# One core, one thread, 256 MB; and the import graph.
test-edge: $(STAMP)
	taskset -c 0 $(BIN)/pytest tests/runtime/test_edge.py tests/runtime/test_package.py

# The runtime's core tests on an emulated aarch64 processor, and its tokens beside ours. Needs root, an hour or so, and
# Debian's qemu-user-static and debootstrap. docs/aarch64.md has what it printed.
test-aarch64: $(STAMP)
	tests/aarch64/run

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

check: lint types imports test

# Each benchmark's last line is its result. DEV is a lhotse manifest or a folder laid out like LibriSpeech.
bench: bench-loss bench-decode bench-mic bench-wer bench-serve

bench-loss: $(STAMP)
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/loss.py | tee $(RESULTS)/loss.tmp
	tail -n 1 $(RESULTS)/loss.tmp > $(RESULTS)/loss.json && rm $(RESULTS)/loss.tmp

bench-decode: $(STAMP)
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/decode.py --audio $(SAMPLE) | tee $(RESULTS)/decode.tmp
	tail -n 1 $(RESULTS)/decode.tmp > $(RESULTS)/decode.json && rm $(RESULTS)/decode.tmp

bench-mic: $(STAMP)
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/mic.py --sound-server | tee $(RESULTS)/mic.tmp
	tail -n 1 $(RESULTS)/mic.tmp > $(RESULTS)/mic.json && rm $(RESULTS)/mic.tmp

bench-serve: $(STAMP)
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/serve.py | tee $(RESULTS)/serve.tmp
	tail -n 1 $(RESULTS)/serve.tmp > $(RESULTS)/serve.json && rm $(RESULTS)/serve.tmp

bench-edge: $(STAMP)
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/edge.py | tee $(RESULTS)/edge.tmp
	tail -n 1 $(RESULTS)/edge.tmp > $(RESULTS)/edge.json && rm $(RESULTS)/edge.tmp

# HEARD is speech that training heard, for a row without its speakers.
bench-wer: $(STAMP) $(RESULTS)/pocketsphinx_wer.json
	@test -n "$(DEV)" || { echo "make bench-wer DEV=MANIFEST: name the speech to measure on" >&2; exit 1; }
	$(BIN)/python benchmarks/wer.py $(DEV) --checkpoint $(CHECKPOINT) --language-model $(LANGUAGE_MODEL) \
	    --beside $(RESULTS)/pocketsphinx_wer.json $(if $(HEARD),--heard $(HEARD)) \
	  | tee $(RESULTS)/wer.tmp
	tail -n 1 $(RESULTS)/wer.tmp > $(RESULTS)/wer.json && rm $(RESULTS)/wer.tmp

# Slow, and the same whatever model ships: measured once, on every fifth cut.
$(RESULTS)/pocketsphinx_wer.json: | $(STAMP)
	@test -n "$(DEV)" || { echo "DEV=MANIFEST: name the speech to measure on" >&2; exit 1; }
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/pocketsphinx_wer.py $(DEV) --every 5 | tee $(RESULTS)/pocketsphinx_wer.tmp
	tail -n 1 $(RESULTS)/pocketsphinx_wer.tmp > $@ && rm $(RESULTS)/pocketsphinx_wer.tmp

# What the model card has beside the error rates. NOISE is a manifest of background sounds, ROOMS one of room responses,
# TARGETS a teacher's paths through the text of DEV.
bench-model: $(STAMP)
	@test -n "$(DEV)" -a -n "$(NOISE)" || { echo "make bench-model DEV=MANIFEST NOISE=MANIFEST [ROOMS=MANIFEST] [TARGETS=FOLDER]" >&2; exit 1; }
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/emission.py $(DEV) $(if $(TARGETS),--targets $(TARGETS)) | tee $(RESULTS)/emission.tmp
	$(BIN)/python benchmarks/robustness.py $(DEV) --noise $(NOISE) $(if $(ROOMS),--rooms $(ROOMS)) | tee $(RESULTS)/robustness.tmp
	$(BIN)/python benchmarks/noise_only.py $(NOISE) | tee $(RESULTS)/noise_only.tmp
	$(BIN)/python benchmarks/long_audio.py $(DEV) | tee $(RESULTS)/long_audio.tmp
	for name in emission robustness noise_only long_audio; do \
	  tail -n 1 $(RESULTS)/$$name.tmp > $(RESULTS)/$$name.json && rm $(RESULTS)/$$name.tmp; \
	done

# Models of other sizes beside the one that ships. MODELS are folders of bundles.
bench-sizes: $(STAMP)
	@test -n "$(DEV)" -a -n "$(MODELS)" || { echo 'make bench-sizes DEV=MANIFEST MODELS="DIR ..."' >&2; exit 1; }
	mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/sizes.py $(DEV) runtime/onebest/model $(MODELS) | tee $(RESULTS)/sizes.tmp
	tail -n 1 $(RESULTS)/sizes.tmp > $(RESULTS)/sizes.json && rm $(RESULTS)/sizes.tmp

# Two and a half hours of two cores; what is finished is used again. WHISPER is Whisper base's folder, ENCODER the student's weights.
bench-kd: $(STAMP)
	@test -n "$(DATA)" || { echo "make bench-kd DATA=FOLDER WHISPER=FOLDER ENCODER=FILE" >&2; exit 1; }
	$(BIN)/python benchmarks/kd_table.py $(DATA) --whisper $(WHISPER) --encoder $(ENCODER) --jobs $(JOBS)
	$(BIN)/python benchmarks/tables.py

# The tables of the README and the model card, and the model's own card, from the results above.
tables: $(STAMP)
	$(BIN)/python benchmarks/tables.py

# The default model from the manifests in DATA, made in work/, to work/wheel; days of two cores, and it can be stopped.
model: $(STAMP)
	@test -n "$(DATA)" || { echo "make model DATA=FOLDER" >&2; exit 1; }
	$(BIN)/python training/recipes/make_model.py $(DATA)

# The same in a minute, of made-up speech.
model-small: $(STAMP)
	rm -rf work/small
	$(BIN)/python training/recipes/make_model.py --small --work work/small --make wheel large-bundle small-bundle

# The sdist, and the wheel built from it.
wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
