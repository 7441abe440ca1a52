#!/usr/bin/env bash
# Fetch the small packages that a machine with only torch, triton and transformers lacks, into an
# ignored folder that is carried along: wheels.sh [PYTHON_VERSION] (3.12). There:
#   python3 -m pip install --no-index --no-deps --target SITE .whl/*.whl; export PYTHONPATH=SITE
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${1:-3.12}
packages=(msgspec pyzmq fastapi starlette uvicorn pydantic pydantic-core annotated-types
  annotated-doc typing-inspection anyio idna sniffio h11 click uvloop prometheus-client)
mkdir -p .whl
echo '*' >.whl/.gitignore
lock=$(mktemp)
trap 'rm -f "$lock"' EXIT
# the locked versions, without hashes: the lock file need not hold those of another platform
for package in "${packages[@]}"; do
  grep -ioE "^$package==[^ ;]+" requirements.lock >>"$lock" || true
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
  --platform manylinux_2_26_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest .whl -r "$lock"
du -sh .whl
