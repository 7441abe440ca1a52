"""Prints the fault table after the tests, whether they passed or not."""

from __future__ import annotations

import pytest

from fault_table import FaultTable

TABLE = pytest.StashKey[FaultTable]()


@pytest.fixture(scope="session")
def fault_table(request):
    return request.config.stash.setdefault(TABLE, FaultTable())


def pytest_terminal_summary(terminalreporter, config):
    table = config.stash.get(TABLE, None)
    if table is None:
        return
    terminalreporter.section("fault table: seconds after the fault")
    for line in table.lines():
        terminalreporter.write_line(line)
