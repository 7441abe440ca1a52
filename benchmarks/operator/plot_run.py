"""A run on a cluster as a picture: requests that wait and run, pods that are wanted and Ready.

    .venv/bin/python benchmarks/operator/plot_run.py RUN.csv PLOT.svg [--title TEXT]

RUN.csv has the head `seconds,waiting,running,desired,ready` and a line per sample.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "plot"))

import svg

COLUMNS = ("seconds", "waiting", "running", "desired", "ready")


def read(path: Path) -> dict[str, list[float]]:
    """Column → values; raises ValueError naming the line that is no sample."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: the head is {rows.fieldnames}, not {','.join(COLUMNS)}")
        values: dict[str, list[float]] = {name: [] for name in COLUMNS}
        for row in rows:
            for name in COLUMNS:
                try:
                    values[name].append(float(row[name]))
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}:{rows.line_num}: {name}: {row[name]}") from error
    if not values["seconds"]:
        raise ValueError(f"{path} has no samples")
    return values


def plot(values: dict[str, list[float]], title: str) -> str:
    """The SVG text."""
    seconds = values["seconds"]
    panels = [
        svg.Panel("requests", [svg.Line(name, seconds, values[name]) for name in COLUMNS[1:3]]),
        svg.Panel("pods", [svg.Line(name, seconds, values[name]) for name in COLUMNS[3:]]),
    ]
    return svg.chart(title, "seconds", panels, end=seconds[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("plot", type=Path)
    parser.add_argument("--title", default="Measured: scaling on queue depth")
    args = parser.parse_args()
    try:
        values = read(args.run)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    args.plot.write_text(plot(values, args.title))


if __name__ == "__main__":
    main()
