"""The report page in a real browser: a silent console, every figure drawn, read-outs, dark mode, narrow screens."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from report_example import example_report

from cptplan.report.data import SetCurve
from cptplan.report.html import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
START_SECONDS = 60  # a cold start of the browser on a busy machine

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


class Page:
    """One tab, driven over the DevTools protocol. Problems and requests are collected as they come."""

    def __init__(self, socket) -> None:
        self.socket, self.last_id, self.session = socket, 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        self.socket.send(json.dumps(message if self.session is None else {**message, "sessionId": self.session}))
        while True:
            answer = json.loads(self.socket.recv(timeout=START_SECONDS))
            if answer.get("id") == self.last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:400])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"])[:400])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def run(self, script: str):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def colours(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, file: Path) -> None:
        self.loaded, self.problems[:], self.requests[:] = False, [], []
        self.call("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + START_SECONDS
        while not self.loaded and time.monotonic() < deadline:
            self.run("1")
        assert self.loaded
        self.run("document.fonts.ready.then(() => 1)")


@contextlib.contextmanager
def browser(profile: Path):
    """A headless browser of its own, and a tab in it."""
    connect = pytest.importorskip("websockets.sync.client").connect
    with (profile.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={profile}"], stdout=log, stderr=log)
        try:
            port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + START_SECONDS
            while not (port_file.exists() and len(port_file.read_text().split("\n")) >= 2):
                assert process.poll() is None, "the browser ended at once"
                assert time.monotonic() < deadline, "the browser did not start"
                time.sleep(0.05)
            port, path = port_file.read_text().split("\n")[:2]
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(example_report(), tmp_path_factory.mktemp("report")).page


@pytest.fixture
def opened(page, report) -> Page:
    page.colours("light")
    page.resize(1280)
    page.open(report)
    return page


FIGURES = """[...document.querySelectorAll("[data-figure]")].map((host) => {
  const marks = [...host.querySelectorAll(".plot > svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    return {width: box.width, height: box.height,
            marks: svg.querySelectorAll(".line, .marker, .band, .heat-mark, .segment").length,
            broken: /NaN|undefined|Infinity/.test(svg.outerHTML)};
  });
  return {name: host.dataset.figure, marks};
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_page_opens_without_problem(page, report, scheme, width):
    page.colours(scheme)
    page.resize(width)
    page.open(report)
    figures = page.run(FIGURES)
    assert {figure["name"] for figure in figures} == {
        "curves",
        "parity",
        "surface",
        "pareto",
        "schedules",
        "pilots",
        "compute",
    }
    for figure in figures:
        assert figure["marks"], figure["name"]
        for plot in figure["marks"]:
            assert plot["width"] > 150, figure["name"]
            assert plot["height"] > 60, figure["name"]
            assert plot["marks"] > 0, figure["name"]
            assert not plot["broken"], figure["name"]
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("index", range(7))
def test_hover_gives_a_readout_inside_the_page(opened, index):
    point = opened.run(
        f"""(() => {{ const host = document.querySelectorAll("[data-figure]")[{index}];
        const svg = host.querySelector(".plot > svg");
        svg.scrollIntoView({{block: "center", behavior: "instant"}});
        const box = svg.getBoundingClientRect();
        return {{x: box.x + box.width * 0.6, y: box.y + box.height * 0.4}}; }})()"""
    )
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", **point)
    shown = opened.run(
        """[...document.querySelectorAll(".readout:not([hidden])")].map((box) => {
        const place = box.getBoundingClientRect();
        return {text: box.innerText, left: place.left, right: place.right}; })"""
    )
    assert len(shown) == 1
    assert any(character.isdigit() for character in shown[0]["text"])
    assert shown[0]["left"] >= 0
    assert shown[0]["right"] <= 1280
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert opened.run("document.querySelectorAll('.readout:not([hidden])').length") == 0


def test_readout_says_the_numbers_of_the_data(opened):
    data = example_report()
    curve = data.runs_of("chosen")[0].curve("general")
    opened.run("document.querySelector('[data-figure=curves] .plot').focus()")
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="End", code="End")
    text = opened.run("document.querySelector('[data-figure=curves] .readout').innerText")
    assert f"Step {curve.measured_steps[-1]:.0f}" in text
    assert f"{curve.measured_losses[-1]:.3f}" in text
    assert f"{curve.predicted_mean[-1]:.3f}" in text
    spoken = opened.run("document.querySelector('[data-figure=curves] [role=status]').textContent")
    assert f"{curve.measured_losses[-1]:.3f}" in spoken
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape")
    assert opened.run("document.querySelectorAll('.readout:not([hidden])').length") == 0


def test_touch_gives_a_readout_that_stays(opened):
    point = opened.run(
        """(() => { const svg = document.querySelector("[data-figure=pareto] svg[role=img]");
        svg.scrollIntoView({block: "center", behavior: "instant"});
        const box = svg.getBoundingClientRect(); return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"""
    )
    opened.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    opened.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert "peak learning rate" in opened.run("document.querySelector('.readout:not([hidden])').innerText")


def test_colours_follow_the_system_and_the_button(opened):
    background = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(background)
    opened.run("document.getElementById('theme').click()")
    dark = opened.run(background)
    assert light != dark
    opened.run("document.getElementById('theme').click()")
    assert opened.run(background) == light
    opened.run("delete document.documentElement.dataset.theme")
    opened.colours("dark")
    assert opened.run(background) == dark


def test_numbers_of_the_curves_open_as_a_table(opened):
    opened.run("document.querySelector('details[data-roles]').open = true")
    opened.run("new Promise((done) => setTimeout(done, 50))")
    rows = opened.run("document.querySelectorAll('details[data-roles] tbody tr').length")
    curves = [curve for run in example_report().runs_of("chosen", "rule_of_thumb") for curve in run.curves]
    assert rows == sum(len(curve.measured_steps) for curve in curves)


def test_report_before_the_proof_opens_without_problem(page, tmp_path):
    page.colours("light")
    page.resize(1280)
    page.open(write_report(example_report(measured=False), tmp_path).page)
    assert all(plot["marks"] and not plot["broken"] for figure in page.run(FIGURES) for plot in figure["marks"])
    assert page.problems == []


def test_sparse_report_opens_without_problem(page, tmp_path):
    """One point here, one series there, a flat surface: what real campaigns leave behind on their first day."""
    full = example_report()
    chosen, rule, pilot = full.runs[0], full.runs[1], full.runs[2]
    one = SetCurve.of("general", measured=([0], [3.0]))
    only_predicted = SetCurve.of("domain", predicted=([0, 600], [4.0, 3.0], [4.0, 2.9], [4.0, 3.1]))
    runs = (
        replace(chosen, curves=(one, only_predicted)),
        replace(rule, curves=(SetCurve(set_name="general"),), lr_steps=(), lr=()),
        replace(pilot, curves=(one,), lr_steps=(1.0,), lr=(0.0,)),
    )
    flat = replace(full.surface, objective=((3.0,) * 25,) * 30, chosen=None, rule_of_thumb=None, pilots=())
    line = replace(full.pareto.lines[0], points=full.pareto.lines[0].points[:1])
    front = replace(full.pareto, lines=(line,), chosen=None, rule_of_thumb=None)
    row = replace(full.outcomes[0], low=3.0, high=3.0, predicted=3.0, measured=3.0)
    data = replace(full, runs=runs, outcomes=(row,), surface=flat, pareto=front, plan=())
    page.colours("light")
    page.resize(1280)
    page.open(write_report(data, tmp_path).page)
    figures = page.run(FIGURES)
    assert {figure["name"] for figure in figures} >= {"curves", "parity", "surface", "pareto", "schedules", "pilots"}
    assert not [figure["name"] for figure in figures if any(plot["broken"] for plot in figure["marks"])]
    assert page.problems == []


def test_hostile_text_is_shown_and_not_run(page, tmp_path):
    hostile = """</script><img src=x onerror="window.hit=1"><script>window.hit=1</script>"""
    data = example_report()
    values = data.to_json()
    values["title"] = values["verdict"][0] = values["warnings"][0] = values["runs"][0]["label"] = hostile
    page.open(write_report(type(data).from_json(values), tmp_path).page)
    assert page.run("window.hit") is None
    assert page.run("document.querySelector('h1').textContent") == hostile
    assert page.problems == []
