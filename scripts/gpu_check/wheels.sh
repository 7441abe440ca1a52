#!/usr/bin/env bash
# Fetch the small packages that a machine with only torch, triton and transformers lacks, into an
# ignored folder that is carried along: wheels.sh [PYTHON_VERSION…] (3.11 3.12 3.13). There:
#   python3 -m pip install --no-index --no-deps --find-links .whl -r .whl/requirements.txt \
#     --target SITE; export PYTHONPATH=SITE
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=(msgspec pyzmq fastapi starlette uvicorn pydantic pydantic-core annotated-types
  annotated-doc typing-extensions typing-inspection anyio idna h11 click uvloop prometheus-client
  jinja2 markupsafe opentelemetry-api
  pytest pytest-timeout pytest-xdist execnet iniconfig packaging pluggy pygments)
rm -rf .whl
mkdir .whl
echo '*' >.whl/.gitignore
# the locked versions, without hashes: the lock file need not hold those of another platform
for package in "${packages[@]}"; do
  grep -ioE "^$package==[^ ;]+" requirements.lock
done >.whl/requirements.txt
platforms=()
for platform in manylinux_2_{28,27,26,24,17}_x86_64 manylinux2014_x86_64; do
  platforms+=(--platform "$platform")
done
[ $# -gt 0 ] || set -- 3.11 3.12 3.13
for version in "$@"; do
  python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --dest .whl -r .whl/requirements.txt
done
du -sh .whl
