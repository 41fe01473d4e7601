"""JupyterLab in a real Chromium: open a notebook, run it, press keys, measure, take pictures.

The server keeps all of its own files in one folder and asks nothing of the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Page, Playwright

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT = 120_000  # ms; a shared machine may be slow, a test that passes does not wait
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
SETTINGS = {  # all cells exist, also off screen; no sidebars in the way
    "notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false"},
}


def chromium() -> str | None:
    """The path of the system's Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def artifacts() -> Path:
    """Where screenshots go: QLAB_ARTIFACTS, or artifacts/ in the repository."""
    folder = Path(os.environ.get("QLAB_ARTIFACTS", ROOT / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Lab:
    """One server and one browser; `close` ends both."""

    def __init__(self, playwright: Playwright, folder: Path):
        self.folder, self.token = folder, secrets.token_hex(16)
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.server = subprocess.Popen(
            self._command(), env=self._environment(), cwd=self.notebooks,
            stdout=open(folder / "server.log", "w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._await_server()
        self.context = playwright.chromium.launch_persistent_context(
            folder / "chromium", executable_path=chromium(), headless=True, args=FLAGS,
            viewport={"width": 1440, "height": 1200}, device_scale_factor=1,
        )  # fmt: skip
        self.context.set_default_timeout(WAIT)

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
        options = {
            "ServerApp.ip": "127.0.0.1", "ServerApp.port": self.port, "ServerApp.port_retries": 0,
            "IdentityProvider.token": self.token, "ServerApp.root_dir": self.notebooks,
            "LabApp.expose_app_in_browser": True, "LabApp.extension_manager": "readonly",
            "LabApp.news_url": None,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }  # fmt: skip
        return command + [f"--{name}={value}" for name, value in options.items()]

    def _environment(self) -> dict[str, str]:
        own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
        own |= {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        own |= {"JUPYTERLAB_SETTINGS_DIR": "settings"}
        for name, settings in SETTINGS.items():
            path = self.folder / "settings" / "@jupyterlab" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        folders = {name: str(self.folder / place) for name, place in own.items()}
        return {**os.environ, **folders, "PYTHONPATH": str(ROOT)}

    def _await_server(self) -> None:
        url = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
        for _ in range(600):
            if self.server.poll() is not None:
                break
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("JupyterLab did not start:\n" + (self.folder / "server.log").read_text())

    def open(self, cells: list[str], name: str) -> Notebook:
        """A notebook of these code cells, opened and run to its end."""
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")
        page = self.context.new_page()
        url = f"http://127.0.0.1:{self.port}/doc/tree/{name}.ipynb?token={self.token}&reset"
        page.goto(url)
        return Notebook(page)

    def close(self) -> None:
        self.context.close()
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()


IDLE = """() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session
  ?.kernel?.status === 'idle'"""
COUNTED = """() => { const cells = window.jupyterapp.shell.currentWidget.content.widgets;
  return cells.every(c => c.model.type !== 'code' || c.model.executionCount !== null)
      && window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'; }"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets.flatMap(
  c => c.model.type === 'code' ? c.model.outputs.toJSON() : [])
  .filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)"""
# From the key that is pressed to the frame that shows the changed picture: after the mutation the
# next frame is drawn, and a message sent inside it arrives when the drawing is done.
WATCH = """(picture) => { window.qlabTimes = []; let pressed = null;
  document.addEventListener('keydown', () => { pressed = performance.now(); }, true);
  new MutationObserver(() => { if (pressed === null) return;
    const start = pressed; pressed = null;
    requestAnimationFrame(() => { const channel = new MessageChannel();
      channel.port1.onmessage = () => window.qlabTimes.push(performance.now() - start);
      channel.port2.postMessage(0); }); }).observe(picture.parentElement, {childList: true}); }"""


class Notebook:
    """An open notebook."""

    def __init__(self, page: Page):
        self.page = page
        page.wait_for_selector(".jp-NotebookPanel .jp-Notebook .jp-Cell")
        page.wait_for_function(IDLE)

    def run(self) -> None:
        """Runs all cells and waits for the last.

        Raises:
            AssertionError: naming what a cell raised.
        """
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(COUNTED)
        errors = self.page.evaluate(ERRORS)
        assert not errors, errors

    def theme(self, name: str) -> None:
        """ "light" or "dark"."""
        full = f"JupyterLab {name.capitalize()}"
        command = (
            f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{full}'}})"
        )
        self.page.evaluate(command)
        light = str(name == "light").lower()
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_timeout(500)  # the style sheet is on its way

    def handle(self, widget: str, control: str) -> Any:
        """The handle of a slider, by the name written beside it."""
        row = self.page.locator(f".{widget} .widget-inline-hbox", has_text=control)
        return row.locator(".noUi-handle").first

    def label(self, widget: str) -> str:
        """The picture in words, its aria-label."""
        return self.page.locator(f".{widget} svg[role=img]").first.get_attribute("aria-label") or ""

    def picture(self, widget: str) -> str:
        """A hash of the drawn SVG."""
        html = self.page.locator(f".{widget} .qlab-picture").first.inner_html()
        return hashlib.sha256(html.encode()).hexdigest()

    def press(self, widget: str, key: str) -> None:
        """Presses a key on what has the focus, and waits until the widget's picture is another."""
        before = self.picture(widget)
        self.page.keyboard.press(key)
        self.await_change(widget, before)

    def await_change(self, widget: str, before: str) -> None:
        end = time.monotonic() + WAIT / 1000
        while self.picture(widget) == before:
            assert time.monotonic() < end, f"the picture of {widget} did not change"
            self.page.wait_for_timeout(10)

    def watch(self, widget: str) -> None:
        """Starts the clock: `times` are from now on."""
        self.page.locator(f".{widget} .qlab-picture").first.evaluate(WATCH)

    def times(self) -> list[float]:
        """Milliseconds from a key to the picture, one a press since `watch`."""
        self.page.wait_for_timeout(200)
        return self.page.evaluate("window.qlabTimes")

    def shot(self, widget: str, name: str) -> Path:
        """A picture of the widget, in the artifacts folder."""
        path = artifacts() / f"{name}.png"
        box = self.page.locator(f".{widget}").first
        box.scroll_into_view_if_needed()
        box.screenshot(path=path)
        return path

    def height(self, widget: str) -> float:
        return self.page.locator(f".{widget}").first.bounding_box()["height"]

    def close(self) -> None:
        """Shuts the kernel down and closes the page."""
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()
