"""The fault table: filled by the tests, printed after them, and required with `--fault-table`. And
Hypothesis without a deadline: a machine that stands still for a moment fails no example.
"""

from __future__ import annotations

import importlib.util

import pytest

from fault_table import FaultTable

TABLE = pytest.StashKey[FaultTable]()
NOTHING_FAILED = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def pytest_addoption(parser):
    parser.addoption(
        "--fault-table",
        action="store_true",
        help="fail unless every cell of the fault table was measured, whatever was selected",
    )


def pytest_configure(config):
    config.stash[TABLE] = FaultTable()
    # the machine of a GPU check has none
    if importlib.util.find_spec("hypothesis"):
        from hypothesis import settings

        settings.register_profile("patient", deadline=None)
        settings.load_profile("patient")


@pytest.fixture(scope="session")
def fault_table(request):
    return request.config.stash[TABLE]


def pytest_sessionfinish(session, exitstatus):
    required = session.config.getoption("--fault-table")
    if required and session.config.stash[TABLE].empty_cells and exitstatus in NOTHING_FAILED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    table, required = config.stash[TABLE], config.getoption("--fault-table")
    if not (table.outcomes or required):
        return
    terminalreporter.section("fault table: seconds after the fault")
    for line in table.lines():
        terminalreporter.write_line(line)
    if required and table.empty_cells:
        terminalreporter.write_line(f"{len(table.empty_cells)} empty cells: failed", red=True)
