"""The training corpus: documents of every source, cleaned of the bundled splits, mixed by tokens.

A document of a bundled split is dropped, and so is every line of 40 or more characters that
stands in one. Shares are counted in tokens; a source shorter than its share is repeated. The
result is one uint16 file of token ids, `<|endoftext|>` between documents, in seeded order.
"""

import argparse
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from qlab.data import problems
from training import extract, texts

MANIFEST = Path(__file__).with_name("corpus.json")
SEED = 0
END = "<|endoftext|>"
DOC = "x/{0}/usr/share/doc"
INSTALLATION = "x/installation-guide-amd64/usr/share/doc/installation-guide-amd64"
TRANSLATED = re.compile(r"\.(?!en\.)[a-z]{2}([-_][A-Za-z]{2})?\.html$")

# group: million tokens. English 9.84, code 5.41, Korean 3.69, arithmetic 3.69, exercises 1.97.
SHARES = {
    "speeches": 3.57,
    "manuals": 1.42,
    "help": 0.65,
    "python-doc": 2.4,
    "linux-doc": 1.8,
    "stdlib": 3.05,
    "tests": 2.36,
    "korean": 3.69,
    "arithmetic": 2.58,
    "easy": 1.11,
    "recall": 0.74,
    "cloze": 0.74,
    "brackets": 0.24,
    "names": 0.25,
}

HTML_MANUALS = {
    "debian-handbook": "x/debian-handbook/usr/share/doc/debian-handbook/html/en-US",
    "debian-reference-en": "x/debian-reference-en/usr/share/debian-reference",
    "debian-faq": "x/debian-faq/usr/share/doc/debian/FAQ",
    "debian-kernel-handbook": "x/debian-kernel-handbook/usr/share/doc/debian-kernel-handbook",
    "harden-doc": "x/harden-doc/usr/share/doc/harden-doc/html/en-US",
    "maint-guide": "x/maint-guide/usr/share/doc/maint-guide/html",
    "debmake-doc": "x/debmake-doc/usr/share/doc/debmake-doc/html",
    "installation-guide-amd64": INSTALLATION + "/en",
}
SOURCE_MANUALS = {
    "debian-policy": "x/debian-policy/usr/share/doc/debian-policy/policy.html/_sources",
    "developers-reference": "x/developers-reference/usr/share/developers-reference/_sources",
}
KOREAN_HTML = {
    "libreoffice-help-ko": "x/libreoffice-help-ko/usr/share/libreoffice/help/ko/text",
    "installation-guide-amd64": INSTALLATION + "/ko",
    "debian-faq-ko": "x/debian-faq-ko/usr/share/doc/debian/FAQ/ko",
    "debian-history": "x/debian-history/usr/share/doc/debian-history/docs",
    "gimp-help-ko": "x/gimp-help-ko/usr/share/gimp/2.0/help/ko",
}
CATALOGUES = {  # package: pattern, shortest string
    "freeciv-data": ("usr/share/locale/ko/LC_MESSAGES/*.mo", 12),
    "wesnoth-1.16-data": ("usr/share/games/wesnoth/1.16/locale/ko/LC_MESSAGES/*.mo", 12),
    "libreoffice-l10n-ko": ("usr/lib/libreoffice/program/resource/ko/LC_MESSAGES/*.mo", 25),
    "wordpress-l10n": ("usr/share/wordpress/wp-content/languages/ko_KR.mo", 25),
    "mediawiki": ("usr/share/mediawiki/**/ko.json", 25),
    "blender-data": ("usr/share/locale/ko/LC_MESSAGES/*.mo", 25),
}

Document = tuple[str, str]  # (source package, text)


def pages(
    folder: Path, roots: dict[str, str], kept: Callable[[Path], bool] = lambda p: True
) -> Iterator[Document]:
    """Yields HTML pages as paragraphs, one document a page."""
    for source, root in roots.items():
        for path in sorted((folder / root).rglob("*.html")):
            if path.is_file() and kept(path):
                yield source, "\n".join(extract.from_html(path.read_bytes()))


def plain(folder: Path, source: str, root: str, pattern: str) -> Iterator[Document]:
    """Yields files as they are."""
    for path in sorted((folder / root).rglob(pattern)):
        try:
            yield source, path.read_text(encoding="utf-8").strip("\n")
        except UnicodeDecodeError:
            continue  # test data in other encodings is no text to learn


def speeches(folder: Path) -> Iterator[Document]:
    held = {name for names in texts.SPEECHES.values() for name in names}
    for path in sorted((folder / texts.SPEECH_FOLDER).glob("*.txt")):
        if path.stem not in held:
            yield "sotu", "\n".join(extract.from_speech(path))


def manuals(folder: Path) -> Iterator[Document]:
    held = {texts.chapter_path(folder, c) for names in texts.CHAPTERS.values() for c in names}

    def kept(path: Path) -> bool:  # translations lie beside the English pages as name.ko.html
        return path not in held and not TRANSLATED.search(path.name)

    yield from pages(folder, HTML_MANUALS, kept)
    for source, root in SOURCE_MANUALS.items():
        yield from plain(folder, source, root, "*.txt")


def help_pages(folder: Path) -> Iterator[Document]:
    yield from pages(folder, {"gimp-help-en": "x/gimp-help-en/usr/share/gimp/2.0/help/en"})
    for path in sorted((folder / "x/gnome-user-docs/usr/share/help/C").rglob("*.page")):
        yield "gnome-user-docs", "\n".join(extract.from_mallard(path.read_bytes()))


def python_doc(folder: Path) -> Iterator[Document]:
    yield from plain(
        folder,
        "python3.11-doc",
        DOC.format("python3.11-doc") + "/python3.11/html/_sources",
        "*.txt",
    )


def linux_doc(folder: Path) -> Iterator[Document]:
    root = folder / (DOC.format("linux-doc-6.1") + "/linux-doc-6.1/html/_sources")
    for path in sorted(root.rglob("*.txt")):
        if "translations" not in path.parts:
            yield "linux-doc-6.1", path.read_text(encoding="utf-8").strip("\n")


def stdlib(folder: Path) -> Iterator[Document]:
    held = {texts.stdlib_path(folder, m) for names in texts.MODULES.values() for m in names}
    for package in ("libpython3.11-minimal", "libpython3.11-stdlib"):
        root = folder / f"x/{package}/usr/lib/python3.11"
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root).as_posix()
            if path not in held and not relative.startswith(
                ("pydoc_data", "encodings/cp", "_sysconfigdata")
            ):
                yield package, path.read_text(encoding="utf-8", errors="ignore").strip("\n")


def tests(folder: Path) -> Iterator[Document]:
    yield from plain(
        folder, "libpython3.11-testsuite", "x/libpython3.11-testsuite/usr/lib/python3.11", "*.py"
    )


def korean(folder: Path) -> Iterator[Document]:
    """Paragraphs that are mostly Hangul; interface strings come sixty to a document."""
    for text in texts.korean_pages(folder).values():
        if len(text) < 400:  # longer pages are the bundled splits
            yield "gnome-user-docs", text
    found = list(
        pages(folder, KOREAN_HTML, lambda p: "debian-history" not in str(p) or ".ko." in p.name)
    )
    linux = DOC.format("linux-doc-6.1") + "/linux-doc-6.1/html/_sources/translations/ko_KR"
    found += plain(folder, "linux-doc-6.1", linux, "*.txt")
    found += plain(
        folder, "crawl-common", "x/crawl-common/usr/share/crawl/dat/descript/ko", "*.txt"
    )
    for source, text in found:
        yield source, "\n".join(line for line in text.split("\n") if extract.is_korean(line))
    for source, (pattern, shortest) in CATALOGUES.items():
        for path in sorted((folder / "x" / source).glob(pattern)):
            strings = [
                s
                for s in extract.from_catalogue(path)
                if len(s) >= shortest and extract.is_korean(s)
            ]
            for start in range(0, len(strings), 60):
                yield source, "\n".join(strings[start : start + 60])


GROUPS: dict[str, Callable[[Path], Iterator[Document]]] = {
    "speeches": speeches,
    "manuals": manuals,
    "help": help_pages,
    "python-doc": python_doc,
    "linux-doc": linux_doc,
    "stdlib": stdlib,
    "tests": tests,
    "korean": korean,
}


# ------------------------------------------------------------------------ keeping splits unseen


def held_lines(bundled: Path = texts.TARGET, shortest: int = 40) -> set[str]:
    """Returns the lines of `shortest` or more characters of all bundled splits."""
    return {
        line.strip()
        for path in bundled.glob("*.txt")
        for line in path.read_text(encoding="utf-8").split("\n")
        if len(line.strip()) >= shortest
    }


def without(text: str, held: set[str]) -> str:
    """Drops the lines that stand in a bundled split."""
    return "\n".join(line for line in text.split("\n") if line.strip() not in held).strip("\n")


def real_documents(folder: Path, held: set[str]) -> dict[str, list[Document]]:
    """Returns {group: documents}, without held lines, without repeated documents."""
    result = {}
    for group, documents in GROUPS.items():
        clean = ((without(text, held), source) for source, text in documents(folder))
        unique = {text: source for text, source in clean if len(text) >= 100}
        result[group] = [(source, text) for text, source in unique.items()]
    return result


# --------------------------------------------------------------------------------- exercises


def exercise_documents(
    group: str,
    draw: Callable[[random.Random], problems.Problem | None],
    held: set[str],
    seed: int = SEED,
) -> Iterator[Document]:
    """Yields endless documents of 40 one-line exercises of the training part."""
    rng = random.Random(f"{group} {seed}")
    while True:
        lines: list[str] = []
        while len(lines) < 40:
            problem = draw(rng)
            if problem and problems.part(problem) == "training" and problem.line not in held:
                lines.append(problem.line)
        yield "generated", "\n".join(lines)


def drawers(real: dict[str, list[Document]]) -> dict[str, Callable]:
    """Returns {group: generator of one exercise}; clozes are cut out of the training text."""
    sentences = {}
    for language, groups in (("en", ("speeches", "help", "manuals")), ("ko", ("korean",))):
        found = [
            s.strip()
            for g in groups
            for _, text in real[g]
            for line in text.split("\n")
            for s in line.replace(". ", ".\n").split("\n")
        ]
        sentences[language] = sorted({s for s in found if 40 <= len(s) <= 200})

    def cloze(rng: random.Random) -> problems.Problem | None:
        language = "en" if rng.random() < 0.6 else "ko"
        return problems.cloze(rng, rng.choice(sentences[language]))

    return {
        "arithmetic": problems.arithmetic,
        "easy": lambda rng: problems.arithmetic(rng, top=30),
        "recall": problems.recall,
        "cloze": cloze,
        "brackets": problems.brackets,
        "names": problems.names,
    }


# ------------------------------------------------------------------------------------ mixing


def take(
    documents: list[Document], wanted: float, tokenizer: Tokenizer, rng: random.Random
) -> Iterator[tuple[str, list[int]]]:
    """Yields encoded documents in random order, again and again, until `wanted` tokens."""
    end, total = tokenizer.token_to_id(END), 0
    encoded = [[*e.ids, end] for e in tokenizer.encode_batch([text for _, text in documents])]
    while True:
        order = rng.sample(range(len(documents)), len(documents))
        for i in order:
            yield documents[i][0], encoded[i]
            total += len(encoded[i])
            if total >= wanted:
                return


def take_exercises(
    documents: Iterator[Document], wanted: float, tokenizer: Tokenizer
) -> Iterator[tuple[str, list[int]]]:
    """Yields encoded fresh exercises until `wanted` tokens."""
    end, total = tokenizer.token_to_id(END), 0
    while total < wanted:
        batch = [next(documents)[1] for _ in range(200)]
        for encoding in tokenizer.encode_batch(batch):
            yield "generated", [*encoding.ids, end]
            total += len(encoding.ids) + 1
            if total >= wanted:
                return


def mix(
    real: dict[str, list[Document]], held: set[str], tokenizer: Tokenizer
) -> tuple[np.ndarray, dict]:
    """Returns all token ids in seeded order and the counts that go into the manifest."""
    rng = random.Random(SEED)
    exercises = drawers(real)
    chosen, counts = [], {}
    for group, share in SHARES.items():
        if group in real:
            found = list(take(real[group], share * 1e6, tokenizer, rng))
        else:
            found = list(
                take_exercises(
                    exercise_documents(group, exercises[group], held), share * 1e6, tokenizer
                )
            )
        counts[group] = {}
        for source, ids in found:
            counts[group][source] = counts[group].get(source, 0) + len(ids)
        chosen += [np.array(ids, np.uint16) for _, ids in found]
        print(f"{group:12} {sum(map(len, (i for _, i in found))):9} tokens", flush=True)
    rng.shuffle(chosen)
    return np.concatenate(chosen), counts


def sample_for_tokenizer(real: dict[str, list[Document]], held: set[str]) -> list[str]:
    """Returns documents of about 12 MB English, 8 code, 4 Korean and 2 arithmetic."""
    rng = random.Random(SEED)
    english = [
        t for g in ("speeches", "manuals", "help", "python-doc", "linux-doc") for _, t in real[g]
    ]
    code = [t for g in ("stdlib", "tests") for _, t in real[g]]
    hangul = [t for _, t in real["korean"]]
    exercises = exercise_documents("tokenizer", problems.arithmetic, held)
    chosen = []
    for documents, size in (
        (english, 12e6),
        (code, 8e6),
        (hangul, 4e6),
        ([next(exercises)[1] for _ in range(1200)], 2e6),
    ):
        for text in rng.sample(documents, len(documents)):
            chosen.append(text)
            size -= len(text.encode())
            if size <= 0:
                break
    return chosen


def main() -> None:
    from training.tokenizer import train_tokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the folder given to fetch")
    folder = parser.parse_args().folder
    held = held_lines()
    real = real_documents(folder, held)
    tokenizer = train_tokenizer(sample_for_tokenizer(real, held))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokens, counts = mix(real, held, tokenizer)
    partial = folder / "tokens.partial"
    partial.write_bytes(tokens.astype("<u2").tobytes())
    os.replace(partial, folder / "tokens.u16")
    manifest = {
        "tokens": len(tokens),
        "seed": SEED,
        "sha256": hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest(),
        "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        "texts_sha256": {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(texts.TARGET.glob("*.txt"))
        },
        "groups": counts,
    }
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(tokens)} tokens, sha256 {manifest['sha256'][:16]}")


if __name__ == "__main__":
    main()
