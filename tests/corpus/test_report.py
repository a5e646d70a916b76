"""The three files of a report: whole, self-contained, harmless."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up import text
from yalm.corpus.report.card import card
from yalm.corpus.report.facts import corpus_facts
from yalm.corpus.report.figures import percent, short, size
from yalm.corpus.report.write import _steps, write_report
from yalm.corpus.settings import CorpusSettings

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br", "path"}  # paths of SVG close themselves


class Page(HTMLParser):
    """All tags and attributes of a page, and its text; an end that closes nothing is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(built: Path) -> Page:
    path = write_report(built)
    assert path == built / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_runs_nothing(built: Path, page: Page) -> None:
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"}
    assert not {name for name in page.attributes if name in ("src", "href", "xlink:href") or name.startswith("on")}
    style = re.search(r"<style>(.*?)</style>", (built / "report.html").read_text(), re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import", style[1])


def test_texts_and_ids_are_shown_escaped(built: Path, page: Page) -> None:
    assert f"copy-0{EVIL}" in page.text
    assert f"{EVIL} {text(1000, 'en')[:100]}" in page.text
    assert f"{EVIL} is no JSON" in page.text
    assert EVIL not in (built / "report.html").read_text()
    assert "<script" not in (built / "card.md").read_text()


def test_the_page_shows_every_section(page: Page, built: Path) -> None:
    facts = corpus_facts(built)
    for item in facts["distributions"]:
        assert item["measure"] in page.text
    for step in facts["waterfall"]:
        assert f"{step['documents']:,}" in page.text
    for rule in facts["samples"]:
        assert rule in page.text
    for title in ("Mixture", "Repetitive domains", "Duplicates", "Languages", "Records that are no documents"):
        assert title in page.text
    assert "shop.example" in page.text


def test_the_facts_are_what_is_written(built: Path, page: Page) -> None:
    assert json.loads((built / "report.json").read_text()) == corpus_facts(built)


def test_the_same_corpus_has_the_same_report(built: Path, page: Page) -> None:
    names = ("report.html", "report.json", "card.md")
    before = [(built / name).read_bytes() for name in names]
    write_report(built)
    assert [(built / name).read_bytes() for name in names] == before


def test_the_card_has_all_parts_and_rules_and_repeats_the_corpus(built: Path, page: Page, tmp_path: Path) -> None:
    markdown = (built / "card.md").read_text()
    facts = corpus_facts(built)
    for name in (*(part["name"] for part in facts["parts"]), *facts["thresholds"]):
        assert re.search(rf"^\| {re.escape(name)} \|", markdown, re.MULTILINE)
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    settings = re.search(r"^```toml\n(.*)^```$", markdown, re.MULTILINE | re.DOTALL)
    assert settings
    (tmp_path / "settings.toml").write_text(settings[1])
    assert CorpusSettings.load(tmp_path / "settings.toml") == CorpusSettings.load(built / "settings.toml")


def test_names_cannot_break_the_card(built: Path) -> None:
    markdown = card(corpus_facts(built) | {"name": f"a\n# b | \\ {EVIL}", "settings": 'deny = ["```"]'})
    assert markdown.startswith(r"# Corpus card: a # b \| \\ &lt;script&gt;")
    assert '````toml\ndeny = ["```"]\n````' in markdown


@given(st.lists(st.lists(st.integers(0, 1000), min_size=3, max_size=3), min_size=1, max_size=4))
def test_stacked_bars_are_as_high_as_their_counts(layers: list[list[int]]) -> None:
    paths = _steps(layers, 30, 100)
    highest = max(1, *(sum(counts) for counts in zip(*layers, strict=True)))
    for layer, path in zip(layers, paths, strict=True):
        heights = [float(height) for height in re.findall(r"v([\d.]+)h-", path)]
        assert heights == pytest.approx([100 * count / highest for count in layer if count], abs=0.006)
    tops = [float(top) for path in paths for top in re.findall(r"M[\d.]+ (-?[\d.]+)h", path)]
    assert all(-0.01 <= top <= 100 for top in tops)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (-45_678, "-45.7 kB"), (999_700, "1.00 MB")]
)
def test_sizes(number: int, words: str) -> None:
    assert size(number) == words


def test_shares_and_short_numbers() -> None:
    assert [percent(*pair) for pair in ((1, 0), (0, 5), (1, 3), (1, 3000), (5, 5))] == [
        "–", "0 %", "33.3 %", "0.033 %", "100.0 %",
    ]  # fmt: skip
    assert [short(number) for number in (0.25, 12345, 0, 1e6)] == ["0.25", "12.3k", "0", "1M"]
