"""Make deploy/install.yaml, the chart with its default values, for `kubectl apply -f`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "lightllm-operator"
TARGET = ROOT / "deploy" / "install.yaml"
RELEASE, NAMESPACE = "lightllm", "lightllm-system"

_HEAD = f"""\
# Made by `make install-yaml` from charts/lightllm-operator; edit that.
#   kubectl apply --server-side -f deploy/install.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


def rendered(helm: Path) -> str:
    """The file's text."""
    command = [str(helm), "template", RELEASE, str(CHART), f"--namespace={NAMESPACE}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return _HEAD + done.stdout


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "cluster"))
    import binaries

    binaries.build(["helm"])
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(rendered(binaries.program("helm")), encoding="utf-8")
