# Two images: `operator` (no torch) and `server` (CUDA-capable torch; Triton can compile).
#   docker build --target server -t lightllm-server .
# The base is any Debian with Python ≥ 3.11 and its venv module. Dependencies are layers of their own, which change with
# their lock file alone; the code is the last and smallest layer.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ARG UV_VERSION=0.13.8
ENV VIRTUAL_ENV=/opt/lightllm \
    PATH=/opt/lightllm/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv ${VIRTUAL_ENV} \
 && PIP_CERT=/etc/ssl/certs/ca-certificates.crt pip install --quiet --no-cache-dir uv==${UV_VERSION}

FROM base AS wheel
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY operator operator
COPY server server
COPY kernels kernels
RUN uv build --quiet --system-certs --no-cache --wheel --build-constraints requirements.lock --require-hashes \
      --out-dir /wheel

FROM base AS operator
COPY requirements-operator.lock /tmp/requirements.lock
RUN uv pip install --quiet --system-certs --no-cache --compile-bytecode --require-hashes -r /tmp/requirements.lock
COPY --from=wheel /wheel /tmp/wheel
RUN uv pip install --quiet --no-cache --no-index --no-deps --compile-bytecode /tmp/wheel/*.whl
USER 65532:65532
# the user has no entry in /etc/passwd, whatever its number: programs that ask for its name find it here
ENV HOME=/tmp USER=lightllm
ENTRYPOINT ["python", "-m", "lightllm_operator"]

FROM base AS server
# Triton compiles its launchers with the C compiler and Python's headers
RUN if ! command -v gcc >/dev/null || ! python -c 'import os, sysconfig as s; \
      raise SystemExit(not os.path.exists(s.get_path("include") + "/Python.h"))'; then \
      apt-get update -qq \
      && apt-get install -y -qq --no-install-recommends gcc libc6-dev python3-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY requirements-server.lock /tmp/requirements.lock
RUN uv pip install --quiet --system-certs --no-cache --compile-bytecode --require-hashes -r /tmp/requirements.lock
COPY examples/demo-model /models/demo-model
COPY --from=wheel /wheel /tmp/wheel
RUN uv pip install --quiet --no-cache --no-index --no-deps --compile-bytecode /tmp/wheel/*.whl
USER 65532:65532
# everything that is written at run time goes to /tmp: the root file system may be read-only
ENV HOME=/tmp \
    USER=lightllm \
    XDG_CACHE_HOME=/tmp/cache \
    TRITON_CACHE_DIR=/tmp/triton \
    HF_HUB_DISABLE_TELEMETRY=1
EXPOSE 8000 8001
ENTRYPOINT ["lightllm-server"]
