"""The cells of the fault table: what is done to whom and when, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CELLS", "Cell", "FaultTable", "Outcome"]

_VICTIMS = ("supervisor", "api", "router", "rank-1", "detok", "tokenize-0")
_FAULTS = (
    ("loading", "SIGKILL"),
    ("idle", "SIGKILL"),
    ("8 streams", "SIGKILL"),
    ("8 streams", "SIGSTOP"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    victim: str
    phase: str
    signal: str

    def __str__(self) -> str:
        return f"{self.victim}, {self.phase}, {self.signal}"


CELLS = tuple(Cell(victim, *fault) for fault in _FAULTS for victim in _VICTIMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Seconds after the fault; `clients` None where there were none."""

    clients: float | None
    told: int
    not_ready: float
    gone: float
    exit_code: int
    orphans: int


@dataclass
class FaultTable:
    outcomes: dict[Cell, Outcome] = field(default_factory=dict)

    def lines(self) -> list[str]:
        head = f"{'victim':<11} {'phase':<10} {'signal':<8} {'clients end':>11} {'told':>5}"
        lines = [f"{head} {'not ready':>9} {'tree gone':>9} {'exit':>5} {'orphans':>7}"]
        for cell in CELLS:
            start = f"{cell.victim:<11} {cell.phase:<10} {cell.signal:<8}"
            outcome = self.outcomes.get(cell)
            if outcome is None:
                lines.append(f"{start} (empty)")
                continue
            clients = "-" if outcome.clients is None else f"{outcome.clients:.2f}"
            told = "-" if outcome.clients is None else f"{outcome.told}/8"
            lines.append(
                f"{start} {clients:>11} {told:>5} {outcome.not_ready:>9.2f} "
                f"{outcome.gone:>9.2f} {outcome.exit_code:>5} {outcome.orphans:>7}"
            )
        return lines

    @property
    def empty_cells(self) -> list[str]:
        return [str(cell) for cell in CELLS if cell not in self.outcomes]
