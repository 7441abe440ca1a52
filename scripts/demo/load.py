"""Streams as clients of the Service hold them: keep-alive, no retry; runs in a pod, needs Python.

Prints one JSON object: streams that ended well, those that were cut and what they said.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
from dataclasses import dataclass, field

PROMPT = "How does the operator choose the number of pods?"


@dataclass
class Tally:
    """Of all clients together."""

    ended: int = 0
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: str | None) -> None:
        with self.lock:
            if fault is None:
                self.ended += 1
            else:
                self.faults.append(fault)


def stream(connection: http.client.HTTPConnection, body: str) -> str | None:
    """One stream, read to its end; what was wrong with it, or None."""
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/generate_stream", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            return f"HTTP {response.status}: {response.read(300).decode()}"
        frames = [line for line in response.read().decode().splitlines() if line]
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"{type(error).__name__}: {error}"
    last = json.loads(frames[-1].removeprefix("data:")) if frames else {}
    return None if last.get("finished") else f"cut after {len(frames)} frames"


def client(host: str, body: str, deadline: float, tally: Tally) -> None:
    connection = http.client.HTTPConnection(host, timeout=120)
    while time.monotonic() < deadline:
        tally.add(stream(connection, body))
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True, help="name or name:port of the Service")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    options = parser.parse_args()
    parameters = {"max_new_tokens": options.tokens, "ignore_eos": True}
    body = json.dumps({"inputs": PROMPT, "parameters": parameters})
    tally, deadline = Tally(), time.monotonic() + options.seconds
    threads = [
        threading.Thread(target=client, args=(options.host, body, deadline, tally))
        for _ in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        json.dumps({"ended": tally.ended, "cut": len(tally.faults), "faults": tally.faults[:5]}),
        flush=True,
    )


if __name__ == "__main__":
    main()
