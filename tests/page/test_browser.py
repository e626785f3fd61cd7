"""The page in headless Chromium: what a person sees, with a console that stays silent."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent.config.types import PageConfig
from agent.runtime.clock import FakeClock
from agent.twin.records import Event
from tests.page.harness import Plant, plant, serving
from tests.page.test_live import MANY

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
        reason="no Chromium here",
    ),
]


def camera() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_screenshot", Path("docs/make_screenshot.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tab:
    def __init__(self, browser: Any, session: str) -> None:
        self._browser, self._session = browser, session

    def __call__(self, script: str) -> Any:
        return self._browser.run(self._session, script)

    def wait(self, script: str) -> Any:
        return self._browser.wait_for(self._session, script, 30.0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with camera().Browser() as started:
        yield started


@pytest.fixture(autouse=True)
def silent_console(browser: Any) -> Iterator[None]:
    """No script error, and nothing that the content policy had to stop; a server that ended is none of them."""
    browser.complaints.clear()
    yield
    browser.close_tabs()
    assert [line for line in browser.complaints if "ERR_CONNECTION_REFUSED" not in line] == []


def open_tab(
    browser: Any, port: int | None, *, width: int = 1280, hash_: str = "", dark: bool = False
) -> Tab:
    session = browser.open(f"http://127.0.0.1:{port}/{hash_}", width=width, height=900, dark=dark)
    tab = Tab(browser, session)
    tab.wait("document.querySelectorAll('#rows tr').length > 0")
    return tab


def text(selector: str) -> str:
    return f"document.querySelector({selector!r}).innerText"


def test_what_is_shown_and_that_it_lives(browser: Any, tmp_path: Path) -> None:
    behind = plant()
    behind.fill_history()
    behind.events = [Event("press1", "n", "warning", "raised", "<b>bold</b> & plain", behind.clock.mono())]
    behind.problems = ["pump2: silent"]
    with serving(behind, tmp_path) as front:
        tab = open_tab(browser, front.port)
        assert tab(text("#gateway")) == "line4"
        assert tab(text("#state")) == "running, with problems"
        assert tab(text("#problems")) == "pump2: silent"
        row = "[...document.querySelectorAll('#rows tr')].find(row => row.dataset.key === 'press1/{}')"
        assert tab(row.format("temperature") + ".children[1].innerText") == "181.38"
        assert tab(row.format("fault_code") + ".children[1].innerText") == "overheat (3)"
        assert tab(row.format("energy") + ".children[1].innerText") == "9007199254740993"
        assert (
            tab(row.format("serial") + ".querySelectorAll('b').length") == 0
        )  # text of a device is no markup
        assert tab("document.querySelectorAll('#events b').length") == 0
        assert "<b>bold</b> & plain" in tab(text("#events"))
        assert tab(text("#loops .mode")) == "auto" and "180" in tab(text("#loops .figures"))
        assert tab("getComputedStyle(document.querySelector('#loops .control')).display") == "none"
        assert tab(text("#health")).startswith("press1")
        assert "3.10 ms" in tab(text("#lines")) and "3 timeout" in tab(text("#lines"))
        assert tab("document.querySelectorAll('#rows td.trend path[d^=M]').length") >= 5
        behind.values["press1/temperature"] = 222.5
        behind.problems = []
        behind.step()
        tab.wait(row.format("temperature") + ".children[1].innerText === '222.50'")
        tab.wait(text("#state") + " === 'healthy'")


def test_a_plot_with_its_forecast(browser: Any, tmp_path: Path) -> None:
    behind = plant()
    behind.fill_history()
    with serving(behind, tmp_path) as front:
        tab = open_tab(browser, front.port)
        tab("document.querySelector('#rows tr').click()")
        tab.wait("document.querySelectorAll('#plot-area .curve').length > 0")
        assert tab(text("#plot-name")) == "press1/temperature"
        points = "document.querySelector('#plot-area .curve').getAttribute('points').split(' ').length"
        assert tab(points) > 340
        assert tab("document.querySelectorAll('#plot-area .fan, #plot-area .ahead').length") == 2
        tab("document.querySelector('[data-span=\"600\"]').click()")
        tab.wait(f"{points} < 70")
        tab("document.querySelector('#plot-close').click()")
        assert tab("document.querySelector('#plot').open") is False


def test_a_fresh_agent_shows_the_last_minute_until_there_is_more(browser: Any, tmp_path: Path) -> None:
    behind = plant()
    with serving(behind, tmp_path) as front:
        tab = open_tab(browser, front.port)
        assert tab(text("#span")) == "1 min"
        path = "document.querySelector('#rows td.trend path').getAttribute('d')"
        tab.wait(f"{path}.split('L').length > 1")
        for value in (100.0, 300.0):
            behind.values["press1/temperature"] = value
            behind.step()
            tab.wait(f"{text('#rows td.value')} === '{value:.0f}'")
        assert tab(path).endswith("L59 0")  # the newest is the highest, at the right end
        behind.fill_history()
        tab("listen()")
        tab.wait(text("#span") + " === '10 min'")


def test_ten_thousand_tags_are_a_page_of_rows(browser: Any, tmp_path: Path) -> None:
    behind = plant(MANY)
    with serving(behind, tmp_path) as front:
        tab = open_tab(browser, front.port)
        assert tab("document.querySelectorAll('#rows tr').length") == 100
        assert tab(text("#where")) == "1 to 100 of 10 000"
        tab("document.querySelector('#next').click()")
        tab.wait(text("#where") + " === '101 to 200 of 10 000'")
        tab(
            "const f = document.querySelector('#find'); f.value = 'PLC9/T99'; f.dispatchEvent(new Event('input'))"
        )
        tab.wait("document.querySelectorAll('#rows tr').length === 11")
        assert tab("document.querySelector('#rows tr').dataset.key") == "plc9/t99"


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, tmp_path: Path, dark: bool) -> None:
    behind = plant()
    behind.problems = ["tcp://10.0.0.5:502/" + "x" * 200]
    with serving(behind, tmp_path) as front:
        tab = open_tab(browser, front.port, width=390, dark=dark)
        assert tab("document.documentElement.scrollWidth") <= 390
        light = tab("getComputedStyle(document.body).backgroundColor") == "rgb(243, 245, 247)"
        assert light is not dark


def test_a_dead_agent_is_noticed(browser: Any, tmp_path: Path) -> None:
    with serving(plant(), tmp_path) as front:
        tab = open_tab(browser, front.port)
        tab("newest = Date.now() - 60000")
    tab.wait("document.body.classList.contains('lost')")
    assert "no answer from the agent for" in tab(text("#state"))


def test_a_silent_main_loop_is_noticed(browser: Any, tmp_path: Path) -> None:
    clock = FakeClock()
    behind: Plant = plant(clock=clock)
    with serving(behind, tmp_path) as front:
        tab = open_tab(browser, front.port)
        clock.advance(40.0)
        tab.wait(text("#problems") + ".includes('40 s old')")


def test_control_needs_the_token(browser: Any, tmp_path: Path) -> None:
    behind = plant()
    page = PageConfig("127.0.0.1", 0, control=True)
    with serving(behind, tmp_path, page=page, token="secret") as front:
        tab = open_tab(browser, front.port)
        tab.wait("getComputedStyle(document.querySelector('#loops .control')).display !== 'none'")
        tab(
            "[...document.querySelectorAll('#loops .control button')].find(b => b.innerText === 'manual').click()"
        )
        tab("document.querySelector('#token').value = 'wrong'; document.querySelector('#ask-yes').click()")
        tab.wait(text("#ask-error") + " === 'wrong token'")
        assert behind.asked == []
        tab("document.querySelector('#token').value = 'secret'; document.querySelector('#ask-yes').click()")
        tab.wait("!document.querySelector('#ask').open")
    assert [(ask.loop, ask.mode, ask.setpoint) for ask in behind.asked] == [("oven", "manual", None)]
    browser.complaints[:] = [line for line in browser.complaints if "403" not in line]
