"""The report of a run: its numbers, and the page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iobus.cli import main
from iobus.cli.report import html, summary
from iobus.trace import JsonLines, Record, Touched

HOSTILE = "</script><script>document.title='taken'</script>"


def record(number: int, **changed: Any) -> Record:
    plain = Record(
        1_000_000 * number,
        0,
        "mmio",
        0xD0000000,
        4,
        False,
        number,
        "dev",
        "MyDevice",
        0,
        (Touched("ID", (), "ID 0x0"),),
        0,
        100,
    )
    return plain._replace(**{"address": plain.address + changed.get("offset", 0), **changed})


RUN = [
    *(record(number) for number in range(100)),
    *(record(number, region="uart", space="pio", is_write=True, offset=5, registers=()) for number in range(30)),
    record(40, region="uart", space="pio", taken=5_000),
    record(50, region=HOSTILE, offset=8, registers=(Touched(HOSTILE, (), HOSTILE),)),
    record(60, region=None, device=None, address=0xE0000000, vcpu=1),
    record(61, region=None, device=None, address=0xE0000000, vcpu=1),
]


def test_the_numbers_are_those_of_the_trace() -> None:
    """Every access is counted once: by region, in time, by place, and if nobody claimed it."""
    data = summary(RUN, "run.jsonl")
    assert (data["accesses"], data["vcpus"]) == (len(RUN), 2)
    assert [region["name"] for region in data["regions"]][:2] == ["dev", "uart"]
    assert sum(region["reads"] + region["writes"] for region in data["regions"]) == len(RUN)
    assert sum(sum(region["times"]) for region in data["regions"]) == len(RUN)
    assert sum(count for region in data["regions"] for *_, count in region["cells"]) == len(RUN)
    assert data["slowest"][0]["taken"] == 5_000
    assert data["unclaimed"] == [["mmio", "0xe0000000", "read", 2]]


def test_two_devices_of_a_name_are_told_apart() -> None:
    """By their base, and only where a name has several; an offset does not make another device."""
    other = [record(number, address=0xD0001004, offset=4, taken=9_000) for number in range(7)]
    same = [record(number, address=0xD0000008, offset=8) for number in range(5)]
    port = [record(number, space="pio", address=0x300, region="port") for number in range(3)]
    data = summary([*RUN, *other, *same, *port], "run.jsonl")
    reads = {region["name"]: region["reads"] for region in data["regions"]}
    assert reads["dev @ 0xd0000000"] == 105 and reads["dev @ 0xd0001000"] == 7
    assert reads["port"] == 3 and reads["(unclaimed)"] == 2 and "dev" not in reads
    assert data["slowest"][0]["region"] == "dev @ 0xd0001000"


def test_a_trace_however_long_makes_a_page_of_bounded_size() -> None:
    """A guest can touch any address: what the page holds of it is bounded."""
    records = (record(n, region=f"r{n % 500}", offset=n, taken=n) for n in range(20_000))
    assert len(html(summary(records, "long"))) < 500_000


def test_an_empty_trace_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trace without an access makes no page but one line."""
    (tmp_path / "empty.jsonl").write_text('{"iobus-trace": 1}\n')
    assert main(["report", str(tmp_path / "empty.jsonl"), "--output", str(tmp_path / "r.html")]) == 2
    assert "has no access" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium."""
    selenium = pytest.importorskip("selenium.webdriver")
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in paths:
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = paths[0]
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(paths[1]))
    yield driver
    driver.quit()


def test_the_page_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """It draws all its parts without an error, sorts a table by a click, and runs nothing that a name holds."""
    with (tmp_path / "run.jsonl").open("w") as file:
        sink = JsonLines(file)
        for one in RUN:
            sink(one)
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "run.jsonl"), "--output", str(page)]) == 0
    browser.get(page.as_uri())
    assert browser.title == "run.jsonl: iobus report"
    assert browser.find_element("tag name", "body").get_attribute("data-drawn") == "yes"
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", "#timeline rect")) > 50
    assert len(browser.find_elements("css selector", "#heat .heat span")) == 5
    assert browser.find_element("css selector", "#heat .heat span").text == "ID"
    assert "0xe0000000" in browser.find_element("id", "unclaimed").text
    facts = [fact.text.splitlines() for fact in browser.find_elements("css selector", "#facts div")]
    assert facts[0] == ["134", "accesses of 2 vCPUs"]
    assert facts[5] == ["2", "claimed by nobody"]
    slowest = [cell.text for cell in browser.find_elements("css selector", "#slowest tbody tr:first-child td")]
    assert slowest == ["0.040000", "vcpu0", "read, 4 bytes", "uart", "0xd0000000", "0x28", "ID 0x0", "5,000"]
    at = browser.find_element("css selector", "#slowest th:first-child button")
    at.click()
    at.click()
    assert browser.find_element("css selector", "#slowest tbody td").text == "0.000000"

    def reads() -> list[int]:
        return [int(cell.text) for cell in browser.find_elements("css selector", "#devices td:nth-child(4)")]

    button = browser.find_element("css selector", "#devices th:nth-child(4) button")
    button.click()
    assert reads() == sorted(reads(), reverse=True)
    button.click()
    assert reads() == sorted(reads())
    assert len(reads()) == 4


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    """No address in the page is fetched: it can be sent to somebody and opened."""
    page = html(summary(RUN, "run"))
    for word in ("src=", "href=", "@import", "url(", "fetch(", "//cdn"):
        assert word not in page
