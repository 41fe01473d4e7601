"""Plain text out of the sources: HTML manuals, Mallard help pages, message catalogues, files.

A document becomes one string, its paragraphs one line each. Only the innermost blocks of a page
are taken, so that a list item's paragraph is not said twice.
"""

import gettext
import html
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from lxml import etree
from lxml import html as lxml_html

SKIPPED_TAGS = {"script", "style", "nav", "header", "footer", "aside", "head"}
SKIPPED_CLASSES = {"toc", "docnav", "navheader", "navfooter"}
BLOCKS = {"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "td", "pre"}
HANGUL = re.compile("[가-힣ㄱ-ㅎㅏ-ㅣ]")


def tidy(text: str) -> str:
    """Collapses white space and brings the text to Unicode form NFC."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def is_korean(text: str) -> bool:
    """At least 12 characters, and at least half of the letters are Hangul."""
    letters = [c for c in text if c.isalpha()]
    return len(text) >= 12 and 2 * len(HANGUL.findall(text)) >= len(letters) > 0


def unrepeated(blocks: Iterable[str]) -> list[str]:
    """Drops empty blocks and blocks already said."""
    return [block for block in dict.fromkeys(blocks) if block]


def is_block(element: etree._Element) -> bool:
    """A tag that holds text of its own, or DocBook's `div.para`."""
    return element.tag in BLOCKS or (
        element.tag == "div" and "para" in element.get("class", "").split()
    )


def from_html(page: bytes, listings: bool = True) -> list[str]:
    """Returns the innermost text blocks of an HTML page; `listings=False` drops code and tables."""
    tree = lxml_html.fromstring(page)
    skipped = SKIPPED_TAGS | (set() if listings else {"pre", "table"})
    for element in list(tree.iter()):
        if (
            not isinstance(element.tag, str)
            or element.tag in skipped
            or element.get("hidden") is not None
            or SKIPPED_CLASSES & set(element.get("class", "").split())
        ):
            if element is not tree and element.getparent() is not None:
                element.drop_tree()
    blocks = []
    for element in tree.iter():
        if not is_block(element) or any(is_block(e) for e in element.iterdescendants()):
            continue
        text = element.text_content()
        blocks.append(
            unicodedata.normalize("NFC", text.strip("\n").rstrip())
            if element.tag == "pre"
            else tidy(text)
        )
    return unrepeated(blocks)


def mallard_text(element: etree._Element) -> str:
    """Text of a Mallard element: menu paths joined with " > ", key sequences with "+"."""
    name = etree.QName(element).localname if isinstance(element.tag, str) else "comment"
    if name in ("info", "comment", "media"):
        return ""
    if name in ("guiseq", "keyseq"):
        return (" > " if name == "guiseq" else "+").join(tidy(mallard_text(e)) for e in element)
    inner = [element.text or ""]
    for child in element:
        inner += [mallard_text(child), child.tail or ""]
    return "".join(inner)


def from_mallard(page: bytes) -> list[str]:
    """Returns titles and paragraphs of a GNOME help page, in order."""
    tree = etree.fromstring(page, etree.XMLParser(resolve_entities=False, recover=True))
    for element in list(tree.iter()):
        if not isinstance(element.tag, str) or etree.QName(element).localname in ("info", "media"):
            tail, parent = element.tail or "", element.getparent()
            if parent is None:
                continue
            before = element.getprevious()
            if before is None:
                parent.text = (parent.text or "") + tail
            else:
                before.tail = (before.tail or "") + tail
            parent.remove(element)
    names = ("title", "p", "subtitle", "td")
    return unrepeated(
        tidy(mallard_text(e))
        for e in tree.iter()
        if etree.QName(e).localname in names
        and not any(etree.QName(d).localname in names for d in e.iterdescendants())
    )


def from_catalogue(path: Path) -> list[str]:
    """Returns the translated strings of a `.mo` file, or of a MediaWiki `ko.json`."""
    if path.suffix == ".json":
        strings = [s for k, s in json.loads(path.read_text()).items() if isinstance(s, str)]
    else:
        with open(path, "rb") as file:
            strings = [s for s in gettext.GNUTranslations(file)._catalog.values() if s]
    plain = (re.sub("<[^>]*>", "", html.unescape(s)) for s in strings)
    return unrepeated(tidy(s) for s in plain)


def from_speech(path: Path) -> list[str]:
    """Returns the paragraphs of a speech, without stage directions and speakers' names."""
    text = re.sub(r"\[[^\]\n]{1,60}\]", "", path.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^(The President|Audience members?|The Speaker)[.:] ?", "", text)
    return [tidy(p) for p in text.split("\n") if tidy(p)]
