# make demo: the main job. make test: lint, types and tests. Both set up what they need.

SHELL := /bin/bash
PYTHON ?= python3
# Passed to pip; for example: make setup PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
PIP_FLAGS ?=
BIN := .venv/bin
STAMP := .venv/set-up

# Shared library = package that brings it: OpenGL without a screen (MuJoCo), and what OpenCV links.
LIBRARIES := libEGL.so.1=libegl1 libEGL_mesa.so.0=libegl-mesa0 libGL.so.1=libgl1 \
    libGLESv2.so.2=libgles2 libglib-2.0.so.0=libglib2.0-0

.PHONY: setup demo test lerobot-check policy clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): setup.py setup.cfg pyproject.toml package.xml .ci/constraints.txt
	@missing=''; \
	for pair in $(LIBRARIES); do \
	    /sbin/ldconfig -p | grep -qF "$${pair%%=*} " || missing+=" $${pair##*=}"; \
	done; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=' python3-venv'; \
	if [ -n "$$missing" ]; then \
	    echo "installing$$missing"; \
	    root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	    $$root apt-get update -q && \
	    $$root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    f"Python {sys.version.split()[0]} is too old: make PYTHON=python3.11 or newer")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) \
	    -c .ci/constraints.txt -e '.[ros,sim,teleop,train,gymnasium,lerobot,ray,test]'
	touch $@

demo: setup
	$(BIN)/qt-ros demo --out out/demo

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup

# Opens an export in the package lerobot, which it installs into out/lerobot/venv (1.6 GB).
lerobot-check: setup
	$(BIN)/python test/lerobot_check.py

# Reproduces config/policies/reach: the run is in out/policy/run.
policy: setup
	$(BIN)/qt-ros collect --episodes 2000 --out out/policy/bags
	$(BIN)/qt-ros convert out/policy/bags --out out/policy/replay
	$(BIN)/qt-ros train config/train/reach.yaml --replay out/policy/replay --out out/policy/run

clean:
	rm -rf build install log out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
