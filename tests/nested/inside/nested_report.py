"""A pytest plugin for inside the nested guest: each result goes out on the second serial line as it comes.

Lines of JSON; `machine.py` reads them. A guest that hangs or dies has told by then what it was doing.
"""

import json
from pathlib import Path
from typing import Any

import pytest


def _tell(**record: Any) -> None:
    # Closed each time: then all of it has left the guest, whatever happens next.
    with Path("/dev/ttyS1").open("w", encoding="ascii") as line:
        line.write(f"{json.dumps(record)}\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Tell that a test begins."""
    _tell(begins=nodeid)


def pytest_runtest_logfinish() -> None:
    """Tell that it is over."""
    _tell(ends=True)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell what came of a test; of its set-up and tear-down, only what went wrong."""
    if report.when != "call" and report.passed:
        return
    name = report.nodeid if report.when == "call" else f"{report.nodeid} ({report.when})"
    if isinstance(report, pytest.SubtestReport):
        name += f" [{report.context.msg}]" if report.context.msg is not None else ""
        name += f" ({', '.join(f'{key}={value}' for key, value in report.context.kwargs.items())})"
    _tell_report(name, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Tell of a file that could not be collected, or that skips as a whole."""
    if not report.passed:
        _tell_report(f"{report.nodeid} (collection)", report)


def _tell_report(name: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    text = report.longreprtext
    if report.skipped:
        text = (
            report.longrepr[2].removeprefix("Skipped: ")
            if isinstance(report.longrepr, tuple)
            else f"xfail: {getattr(report, 'wasxfail', '')}"
        )
    elif report.failed:
        text += "".join(f"\n--- {title}\n{content}" for title, content in report.sections)
    _tell(test=name, outcome=report.outcome, text=text, seconds=round(getattr(report, "duration", 0.0), 1))
