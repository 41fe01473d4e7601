"""One JupyterLab server and one Chromium for all tests of this folder, a page for each."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the tests share lab.py, which is no part of the package


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A running JupyterLab, skipped with a sentence where there is none."""
    for module in ("playwright", "jupyterlab", "ipykernel", "anywidget"):
        pytest.importorskip(
            module, reason=f"the browser tests need {module}: pip install -e '.[lab,dev]'"
        )
    from lab import Lab, chromium
    from playwright.sync_api import sync_playwright

    if chromium() is None:
        pytest.skip("the browser tests need Chromium: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as playwright:
        lab = Lab(playwright, tmp_path_factory.mktemp("lab"))
        yield lab
        lab.close()
