"""The card of a corpus, in Markdown: what it is, what it is made of, what was filtered out, what it is not good for.

It says the facts of the report in the order of the data cards that people know, and ends with the settings that make
the corpus again.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from yalm.corpus.report.figures import count, percent, size

_LANGUAGES_SHOWN = 10


def card(facts: Mapping[str, Any]) -> str:
    """The card, from what `facts.corpus_facts` says."""
    sections = (_what(facts), _composition(facts), _filters(facts), _languages(facts), _limits(facts), _repeat(facts))
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(facts: Mapping[str, Any]) -> str:
    read, kept = facts["waterfall"][0], facts["waterfall"][-1]
    lines = [
        f"# Corpus card: {_plain(facts['name'])}",
        f"A text corpus of {count(kept['documents'])} documents and {size(kept['bytes'])} of UTF-8 text in "
        f"{len(facts['parts'])} part(s), to pre-train language models on. It is what is left of "
        f"{count(read['documents'])} documents and {size(read['bytes'])}: "
        f"{percent(kept['documents'], read['documents'])} of the documents, "
        f"{percent(kept['bytes'], read['bytes'])} of the bytes. "
        "`report.html` beside this card shows the same with pictures and examples; `report.json` has all numbers.",
        "The documents lie in `documents/PART/train` and `documents/PART/validation` as JSON lines in Zstandard, "
        "with the fields `text` and `meta`.",
    ]
    return "\n\n".join(lines)


def _composition(facts: Mapping[str, Any]) -> str:
    rows = [
        (
            part["name"],
            part["kind"],
            part["language"] or "any",
            count(part["read_documents"]),
            count(part["kept_documents"]),
            size(part["kept_bytes"]),
            percent(part["kept_bytes"], part["read_bytes"]),
            f"{part['weight_percent']:.4g} %",
            part["max_epochs"],
        )
        for part in facts["parts"]
    ]
    heads = (
        "part",
        "source",
        "language",
        "read",
        "kept",
        "text kept",
        "of bytes",
        "weight in tokens",
        "epochs at most",
    )
    text = "## Composition and sources\n\n" + _table(heads, rows)
    if facts["mixture"] is not None:
        tokens = [
            (
                part["name"],
                count(part["has"]),
                count(part["needs"]),
                count(part["takes"]),
                f"{part['share_percent']:.4g} %",
                f"{part['epochs']:.3g}",
            )
            for part in facts["mixture"]["parts"]
        ]
        text += f"\n\nA run of {count(facts['mixture']['tokens'])} tokens reads them so:\n\n"
        text += _table(("part", "has", "needs by its weight", "takes", "share", "epochs"), tokens)
    return text


def _filters(facts: Mapping[str, Any]) -> str:
    read = facts["waterfall"][0]
    steps = {step["name"]: step for step in facts["waterfall"]}
    rows = [
        (
            rule,
            count(steps[rule]["dropped_documents"]),
            percent(steps[rule]["dropped_documents"], read["documents"]),
            percent(steps[rule]["dropped_bytes"], read["bytes"]),
            ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()),
        )
        for rule, settings in facts["thresholds"].items()
    ]
    skipped = [f"{part['name']} ({', '.join(part['skip'])})" for part in facts["parts"] if part["skip"]]
    text = "## Filters\n\nIn the order in which documents meet them; shares are of all that was read.\n\n"
    text += _table(("rule", "documents", "of documents", "of bytes", "settings"), rows)
    if skipped:
        text += f"\n\nParts that are not judged by some rules: {'; '.join(skipped)}."
    mended = steps["mended"]["dropped_bytes"]
    return text + f"\n\nRules that mend texts made them {size(abs(mended))} {'shorter' if mended >= 0 else 'longer'}."


def _languages(facts: Mapping[str, Any]) -> str:
    kept = facts["languages"]["kept"]
    total = sum(kept.values())
    rows = [(name or "not known", count(found), percent(found, total)) for name, found in kept.items()]
    text = "## Languages\n\n" + _table(("language", "documents", "share"), rows[:_LANGUAGES_SHOWN])
    others = len(rows) - _LANGUAGES_SHOWN
    return text + (f"\n\nand {others} more." if others > 0 else "")


def _limits(facts: Mapping[str, Any]) -> str:
    duplicates, quality = facts["thresholds"]["duplicates"], facts["thresholds"]["quality"]
    similarity, rows, bands = duplicates["similarity"], duplicates["rows"], duplicates["bands"]
    missed = (1 - similarity**rows) ** bands
    rejected = facts["rejected"]
    limits = [
        "The texts are their authors'. No licence was checked or given; what may be done with them is for the sources' "
        "terms to say.",
        "Texts were chosen by rules, not read by people. Errors, insults, prejudice and personal data that the rules "
        "do not look for are in them.",
        f"Near copies of a similarity (Jaccard, of runs of {duplicates['shingle_words']} words) below {similarity:g} "
        f"stay. Of pairs at {similarity:g} {percent(missed, 1)} are overlooked, of more similar ones fewer.",
        "Repetitive domains are known by the addresses of documents; those without one are not judged by this rule.",
        f"{count(rejected['records'])} records of the sources were no documents, {count(rejected['broken'])} of them "
        "broken; they are not in the numbers above.",
    ]
    if not quality["model"] and not quality["models"]:
        limits.append("No classifier of quality was given, so none was used.")
    return "## Known limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _repeat(facts: Mapping[str, Any]) -> str:
    runs = [len(run) for run in re.findall("`+", facts["settings"])]
    fence = "`" * max([3, *(run + 1 for run in runs)])
    return (
        "## How to repeat it\n\nThe same sources and these settings make the same documents, on any engine and number "
        "of workers:\n\n```\nyalm corpus build settings.toml\n```\n\n"
        f"{fence}toml\n{facts['settings'].rstrip()}\n{fence}"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown; the first column is text, what is in the cells is made harmless."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    lines += [[_plain(str(cell)) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown and HTML take as it is."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
