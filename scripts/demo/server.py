"""Start the server on the demo model, ask it three questions over HTTP, stream the answers.

It is the real multi-process engine; beyond the model it gets only a free port and no drain delay.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from lightllm_server.client import Client, ClientError

QUESTIONS = (
    "What is LightLLM for Kubernetes?",
    "What is TokenAttention?",
    "How is the tensor parallel size chosen?",
)
READY_TIMEOUT_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(client: Client, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not client.is_ready():
        if server.poll() is not None:
            sys.exit(f"the server ended with exit code {server.returncode} before it was ready")
        if time.monotonic() > deadline:
            sys.exit(f"the server was not ready after {READY_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _bold(text: str) -> str:
    """On a terminal, unless NO_COLOR (no-color.org) is set."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return f"\033[1m{text}\033[0m"
    return text


def ask(client: Client, question: str) -> None:
    print(f"\n{_bold(f'> {question}')}", flush=True)
    began = time.monotonic()
    first = None
    for piece in client.stream_chat(question, max_new_tokens=128):
        first = first or time.monotonic() - began
        print(piece, end="", flush=True)
    took = time.monotonic() - began
    print(f"\n  (first text after {(first or took) * 1e3:.0f} ms, all after {took * 1e3:.0f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-dir", type=Path, default=Path("examples/demo-model"))
    model_dir = parser.parse_args().model_dir
    port = free_port()
    command = [Path(sys.executable).parent / "lightllm-server", "--model-dir", model_dir]
    command += ["--port", str(port), "--drain-delay", "0"]
    print("$", *(str(word) for word in command), flush=True)
    began = time.monotonic()
    server = subprocess.Popen(command)
    try:
        client = Client(f"http://127.0.0.1:{port}")
        wait_until_ready(client, server)
        print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
        for question in QUESTIONS:
            ask(client, question)
    except ClientError as error:
        sys.exit(f"the demo failed: {error}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    print("\nTry it yourself: `make serve`, then `.venv/bin/lightllm-client --text '…'`.")


if __name__ == "__main__":
    main()
