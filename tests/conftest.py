"""What every test shares: the rule that a skipped integration test fails a run that asked for all of them."""

import os
from collections.abc import Generator
from typing import Any

import pytest

# With several threads, torch's small operations wait for each other's turn on a busy machine: ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_skipped_integration: list[str] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:  # noqa: ARG001
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.get_closest_marker("integration") and not hasattr(report, "wasxfail"):
        _skipped_integration.append(item.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CAMVEC_FAIL_ON_SKIP") and _skipped_integration:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CAMVEC_FAIL_ON_SKIP") and _skipped_integration:
        terminalreporter.write_line("integration tests were skipped, and this run allows none:", red=True)
        for nodeid in _skipped_integration:
            terminalreporter.write_line(f"  {nodeid}")
