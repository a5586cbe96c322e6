"""The nested guest (tests/nested): what it runs inside, as part of this suite, and that its rig tells the truth.

Each test inside is a subtest here: a failure shows the test's own output, and a skip its reason.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nested.image import PROJECT, RigUnavailableError, image, job_archive, program_archive
from nested.machine import Outcome, Result, missing, run

from iobus.boot.debian import GuestUnavailableError

INSIDE = {
    "tests/nested/inside/kvm_smoke.py": 120,
    "tests/kvm": 900,
    "tests/engines -k 'not unicorn'": 300,
    "tests/nested/inside/linux_boot.py": 1200,
}
"""What runs inside, as arguments of pytest with a path first, and its limit in seconds.

The limit is ten times and more what it takes on a quiet machine.
"""

MAKING = 240
"""Seconds beside a limit, to fetch the kernel and to make the image."""


@pytest.fixture(scope="session")
def rig() -> None:
    """The image is made; else the test skips and says why."""
    try:
        if reason := missing():
            raise RigUnavailableError(reason)
        image()
    except (RigUnavailableError, GuestUnavailableError) as exc:
        pytest.skip(f"no nested guest: {exc}")


def retell(outcome: Outcome, subtests: pytest.Subtests) -> None:
    """Make each result inside a subtest, and fail for a job that did not end as its results say."""
    for result in outcome.results:
        with subtests.test(result.test):
            if result.outcome == "skipped":
                pytest.skip(f"{result.test}: {result.text}")  # the summary has the reason only
            if result.outcome == "failed":
                pytest.fail(result.text, pytrace=False)
    if outcome.problem:
        pytest.fail(outcome.report(), pytrace=False)
    failed = any(result.outcome == "failed" for result in outcome.results)
    assert outcome.results and outcome.status == int(failed), "\n".join(outcome.console)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "seconds"),
    [
        pytest.param(what, seconds, id=Path(what.split()[0]).stem, marks=pytest.mark.timeout(seconds + MAKING))
        for what, seconds in INSIDE.items()
    ],
)
def test_inside(what: str, seconds: int, rig: None, subtests: pytest.Subtests) -> None:
    """What passes where /dev/kvm is hardware's passes in the nested guest."""
    arguments = shlex.split(what)
    if not (PROJECT / arguments[0]).exists():
        pytest.skip(f"there is no {arguments[0]} in this tree")
    retell(run(["pytest", *arguments], seconds=seconds), subtests)


TESTS = '''
import pytest

def test_good(): pass
def test_bad():
    """It fails."""
    print("about six")
    assert 6 * 9 == 42
@pytest.fixture
def broken(): raise OSError("broken fixture")
def test_set_up(broken): pass
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
def test_parts(subtests):
    with subtests.test("part", n=1): assert 1 == 2
'''


@pytest.mark.slow
@pytest.mark.timeout(120 + MAKING)
def test_results_and_a_crash_come_out(rig: None, tmp_path: Path) -> None:
    """Each result inside is told with its words; a kernel that then crashes is a job that did not end."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(TESTS)
    (tmp_path / "tests" / "test_whole.py").write_text("import pytest\npytest.skip('all', allow_module_level=True)\n")
    (tmp_path / "tests" / "test_syntax.py").write_text("def\n")
    job = "pytest tests/test_one.py tests/test_whole.py; pytest tests/test_syntax.py; echo status $?; "
    outcome = run(["sh", "-c", job + "echo c >/proc/sysrq-trigger"], seconds=120, tree=tmp_path)
    found = {result.test.removeprefix("tests/"): result for result in outcome.results}
    assert {name: result.outcome for name, result in found.items()} == {
        "test_one.py::test_good": "passed",
        "test_one.py::test_bad": "failed",
        "test_one.py::test_set_up (setup)": "failed",
        "test_one.py::test_skipped (setup)": "skipped",
        "test_one.py::test_known": "skipped",
        "test_one.py::test_parts [part] (n=1)": "failed",
        "test_one.py::test_parts": "failed",
        "test_whole.py (collection)": "skipped",
        "test_syntax.py (collection)": "failed",
    }  # fmt: skip
    for name, words in {
        "test_one.py::test_bad": "assert (6 * 9) == 42",
        "test_one.py::test_set_up (setup)": "OSError: broken fixture",
        "test_one.py::test_skipped (setup)": "not today",
        "test_one.py::test_known": "known",
        "test_whole.py (collection)": "all",
        "test_syntax.py (collection)": "SyntaxError",
    }.items():
        assert words in found[name].text
    assert "about six" in found["test_one.py::test_bad"].text
    assert "status 2" in outcome.console
    assert (outcome.status, outcome.problem) == (None, "the nested guest ended before its job did")
    assert "Kernel panic" in outcome.report()


def qemus(parent: int) -> list[int]:
    """Return the process ids of a process's children that are QEMU and alive."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        name, state, its_parent = stat(int(place.name))
        if name.startswith("qemu-system") and state not in "ZX" and its_parent == parent:
            found.append(int(place.name))
    return found


def stat(pid: int) -> tuple[str, str, int]:
    """Return a process's name, state and parent; state X where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", "X", 0
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()[0], int(rest.split()[1])


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + MAKING
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(60 + MAKING)
def test_the_limit_ends_a_guest(rig: None) -> None:
    """A job that would run on is stopped at its limit, and no QEMU is left."""
    outcome = run(["sleep", "9999"], seconds=2)
    assert (outcome.status, outcome.problem) == (None, "the nested guest did not end within its limit of 2 seconds")
    assert qemus(os.getpid()) == []


@pytest.mark.slow
@pytest.mark.timeout(2 * MAKING)
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_qemu_goes_with_the_process_that_started_it(rig: None) -> None:
    """A test session that is killed, and can clean up nothing, leaves no QEMU running."""
    script = "from nested.machine import run; run(['sleep', '9999'], seconds=9999)"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT / "tests")
    try:
        wait_for(lambda: qemus(process.pid) or process.poll() is not None)
        (qemu,) = qemus(process.pid)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: stat(qemu)[1] in "ZX")


def test_a_job_is_the_tree_and_the_command(tmp_path: Path) -> None:
    """The same tree gives the same bytes; bytecode, caches and hidden files are not carried; a change is."""
    source = tmp_path / "src" / "iobus"
    source.mkdir(parents=True)
    (source / "bus.py").write_text("x = 1\n")
    first = job_archive(tmp_path, ["true"])
    assert b"/iobus/bus.py" in first and b"sleep 'a b'" in job_archive(tmp_path, ["sleep", "a b"])
    for name in ("src/iobus/.hidden", "tests/__pycache__/x.pyc", ".git/x", "docs/x.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert job_archive(tmp_path, ["true"]) == first
    (source / "bus.py").write_text("x = 2\n")
    assert job_archive(tmp_path, ["true"]) != first


def test_programs_are_carried_with_their_libraries(tmp_path: Path) -> None:
    """A program, the C library that it needs, and a file, each at its own place."""
    (tmp_path / "firmware.bin").write_bytes(b"\x55\xaa")
    shell = Path("/bin/sh").resolve()
    archive = program_archive([shell], [tmp_path / "firmware.bin"])
    for name in (str(shell), "libc.so", str(tmp_path / "firmware.bin")):
        assert name.lstrip("/").encode() in archive


def test_a_hang_is_told_with_its_test_and_the_console() -> None:
    """The report of a job that did not end has why, the test it was in, QEMU's words and the console's last lines."""
    outcome = Outcome(problem="it hung", running="tests/test_x.py::test_y", errors=["qemu: no"])
    outcome.console += [f"line {number}" for number in range(100)]
    report = outcome.report().splitlines()
    assert report[:3] == ["it hung", "running: tests/test_x.py::test_y", "qemu: no"]
    assert report[-1] == "line 99" and "line 39" not in report and "line 40" in report


def test_a_hidden_failure_does_not_pass(subtests: pytest.Subtests) -> None:
    """Results that all passed are not enough: the job's status must say so too, and there must be some."""
    good = Result("test_x", "passed", "", 0.1)
    retell(Outcome(status=0, results=[good]), subtests)
    for outcome in (Outcome(status=2, results=[good]), Outcome(status=0), Outcome(results=[good], problem="it hung")):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            retell(outcome, subtests)
