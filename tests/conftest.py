"""What every test shares: cached compilation, hypothesis' settings, and the rule about skips."""

import importlib.util
import os
from pathlib import Path

# Programs compiled by one run (or one worker) are read back by the next. Set before jax is
# imported anywhere; an explicit setting of the caller wins.
from qlab.cache import cache_dir

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402

try:
    import hypothesis
except ImportError:  # the property tests say themselves that they need it
    pass
else:
    # The same examples everywhere, and no deadline: the first example pays for a compilation.
    hypothesis.settings.register_profile(
        "qlab", deadline=None, derandomize=True, max_examples=40, database=None
    )
    hypothesis.settings.load_profile("qlab")

# Without torch there is nothing to compare with: the peers' tests are not even collected.
collect_ignore = [] if importlib.util.find_spec("torch") else ["peers"]

MAPS, MOST_MAPS = Path("/proc/self/maps"), 30_000


def pytest_runtest_teardown():
    """Forgets the compiled programs of a worker before they take all the memory areas that Linux
    gives a process (65,530, vm.max_map_count): at the limit, compiling ends in a segmentation
    fault. They come back from the cache on disk.
    """
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


REQUIRE_ALL = os.environ.get("QLAB_REQUIRE_ALL", "") not in ("", "0")


def _forbid_skip(report, where: str) -> None:
    """Turns a skip into a failure where every tool is promised to be present (.ci/run)."""
    if not (REQUIRE_ALL and report.skipped) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if "needs an accelerator" in reason or "peers" in where:
        return
    report.outcome = "failed"
    report.longrepr = f"QLAB_REQUIRE_ALL forbids skipping {where}: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _forbid_skip(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _forbid_skip(report, collector.nodeid)
    return report
