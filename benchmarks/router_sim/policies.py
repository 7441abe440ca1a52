"""The admission policies that are compared: the server's own, and two that exist here only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from loads import IntArray, Requests

from lightllm_server.router import admission
from lightllm_server.router.admission import AdmissionPolicy, Occupancy, peak_of

__all__ = ["POLICIES", "OracleAdmission", "WatermarkAdmission"]


class WatermarkAdmission(AdmissionPolicy):
    """vLLM's rule: admit while the prompts fit and 1 % of the slots stays free, whatever comes.

    In slots instead of blocks of 16, so nothing is lost in half-filled blocks.
    """

    def __init__(self, num_slots: int, watermark: float = 0.01) -> None:
        self._reserved = int(watermark * num_slots)

    def peak(self, rows: Occupancy) -> int:
        held = rows.held_in(np.arange(len(rows.held)))
        return int(held.sum()) + self._reserved


class OracleAdmission(AdmissionPolicy):
    """The efficient peak with the true output lengths, which nobody can know.

    output_lens: [N] by order of arrival.
    """

    def __init__(self, output_lens: IntArray) -> None:
        self._output_lens = output_lens

    def peak(self, rows: Occupancy) -> int:
        total = self._output_lens[rows.keys >> 16]
        return peak_of(rows, total - rows.out_lens + 1 + rows.prefill_steps)


# made anew for each run: (slots, requests) → policy
POLICIES: dict[str, Callable[[int, Requests], AdmissionPolicy]] = {
    "efficient": lambda slots, requests: admission.policy("efficient"),
    "past-future": lambda slots, requests: admission.policy("past-future"),
    "conservative": lambda slots, requests: admission.policy("conservative"),
    "watermark": lambda slots, requests: WatermarkAdmission(slots),
    "oracle": lambda slots, requests: OracleAdmission(requests.output_lens),
}
