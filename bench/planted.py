"""How well the corpus rules find trouble: real texts with trouble planted among them, through `yalm corpus build`.

    python bench/planted.py TEXTS... --output DIR [--documents 6000] [--json FILE]

TEXTS are JSON lines with `text` and `lang`. Some documents stay as they are; others, of which no clean copy stays,
are turned into one kind of trouble each: exact copies, near copies at several Jaccard levels, wrong decodings, random
characters, keyword spam, pages of a template, markup, advertising, e-mail addresses. The table says of each kind how
many were dropped or mended as they should be, and by which rule; of each rule how many untouched documents it
dropped. Near copies are held against the exact Jaccard similarity of all pairs that share any shingle, computed here
on plain sets.
"""

import argparse
import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq

from measure import report
from yalm.corpus.engine import Engine
from yalm.corpus.pipeline import Corpus, build
from yalm.corpus.settings import CorpusSettings
from yalm.tokens.documents import find_files, read_raw

LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SHINGLE, SIMILARITY = 5, 0.8
# Letters, digits, and all beyond ASCII but three blocks of punctuation, as `yalm.corpus.words` has it.
WORD = re.compile("(?:[a-z0-9]|[^\\x00-\\xbf\\u2000-\\u207f\\u3000-\\u303f])+")
AD = (
    "Купить дёшево! Скидки до 70% только сегодня. Заказать с доставкой по всей России: звоните прямо сейчас! "
    "Акция! Распродажа! Лучшие цены! Оформить заказ в один клик. Подпишитесь на рассылку и получите подарок. ",
    "Buy now! Up to 70% off today only. Free shipping on all orders, call us right now! Best prices guaranteed! "
    "Click here to order. Subscribe to our newsletter and get a free gift. Limited time offer! ",
)
KEYWORDS = (
    [
        "окна",
        "пластиковые",
        "купить",
        "недорого",
        "москва",
        "цена",
        "доставка",
        "установка",
        "отзывы",
        "скачать",
        "бесплатно",
        "онлайн",
    ],
    [
        "cheap",
        "flights",
        "hotel",
        "booking",
        "online",
        "casino",
        "bonus",
        "free",
        "download",
        "best",
        "price",
        "buy",
        "discount",
        "viagra",
    ],
)
PLACES = ("Вокзал", "Рынок", "Больница", "Мост", "Завод", "Почта", "Озеро", "Школа", "Театр", "Депо", "Парк")

TEMPLATE = (
    "Справочник остановок городского и пригородного транспорта нашей области, составленный по открытым данным.",
    "На этой странице собраны сведения об остановке, её расположении и о маршрутах, которые через неё проходят.",
    "Сведения обновляются раз в месяц. Если вы заметили ошибку, напишите об этом составителям справочника.",
    "Рядом с остановкой расположены жилые дома, школа и небольшой сквер, куда можно зайти в ожидании автобуса.",
    "Расписание движения может меняться в праздничные дни и в дни, когда улицы закрыты для проезда.",
    "Составители справочника благодарят всех, кто прислал свои замечания и фотографии.",
)


def near_copy(text: str, level: float, draw: random.Random) -> str:
    """A copy with words replaced until about `level` of the shingles agree."""
    words = text.split()
    keep = level * 2 / (1 + level)  # of the shingles of each, for s = k / (2 - k)
    changes = round(len(words) * (1 - keep ** (1 / SHINGLE)))
    for place in draw.sample(range(len(words)), min(changes, len(words))):
        words[place] = f"{draw.choice(words)}{draw.randrange(1000)}"
    return " ".join(words)


def plant(documents: Sequence[dict[str, str]], draw: random.Random) -> Iterator[dict[str, str]]:
    """All documents of the test, each with `id` (its kind, a number) and `url`."""
    kinds = ["clean"] * 12 + ["copied"] * 2 + ["near"] * 8
    kinds += ["mojibake", "mojibake", "random", "spam", "markup", "ads", "mail", "short"]
    for number, document in enumerate(documents):
        kind, russian = kinds[number % len(kinds)], document["lang"] == "ru"
        text = unicodedata.normalize("NFC", document["text"])
        url = f"https://site-{draw.randrange(50)}.example/{number}"
        if kind == "copied":
            yield {"id": f"exact-{number}", "text": text, "url": f"https://copy.example/{number}"}
        elif kind == "near":
            level = LEVELS[number % len(kinds) % len(LEVELS)]
            yield {"id": f"near{level}-{number}", "text": near_copy(text, level, draw), "url": url}
        elif kind == "mojibake":
            wrong = (("utf-8", "cp1251"), ("cp1251", "latin-1"), ("utf-8", "latin-1"))[number // len(kinds) % 3]
            text = text.encode(wrong[0], "ignore").decode(wrong[1], "replace")
        elif kind == "random":
            text = "".join(chr(draw.choice((draw.randrange(33, 127), draw.randrange(0x410, 0x450)))) for _ in text)
        elif kind == "spam":
            text = " ".join(draw.choice(KEYWORDS[not russian]) for _ in text.split())
        elif kind == "markup":
            lines = "".join(f'<p class="body">{line}</p>\n' for line in text.splitlines())
            text = f"<html><head><title>page</title></head><body><div id='main'>{lines}</div></body></html>"
        elif kind == "ads":
            text = AD[not russian] * draw.randrange(2, 5)
        elif kind == "mail":
            text += f"\nwrite to user{number}@mail.example.org or +7 (495) 123-45-{number % 90 + 10}."
        elif kind == "short":
            text = " ".join(text.split()[:4])
        name = "clean" if kind in ("copied", "near") else kind
        yield {"id": f"{name}-{number}", "text": text, "url": url}
    for number in range(len(documents) // 30):
        place, route = draw.choice(PLACES), draw.randrange(1, 300)
        own = (
            f"Остановка «{place} {number}», маршрут {route}, дом {draw.randrange(1, 200)}, код {draw.randrange(10**6)}."
        )
        text = "\n".join([TEMPLATE[0], own, *TEMPLATE[1:]])
        yield {"id": f"template-{number}", "text": text, "url": f"https://stops.example/{number}"}


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The runs of words of a text, by plain Python: what the pipeline's are compared with."""
    words = WORD.findall(text.lower())
    return (
        frozenset(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))
        if words
        else frozenset()
    )


def similar_pairs(texts: dict[str, str]) -> dict[tuple[str, str], float]:
    """Exact Jaccard similarity of every two documents that share a shingle, where it is at least 0.3."""
    sets = {name: shingles(text) for name, text in texts.items()}
    holders = defaultdict(list)
    for name, of_text in sets.items():
        for shingle in of_text:
            holders[shingle].append(name)
    shared = Counter[tuple[str, str]]()
    for names in holders.values():
        if len(names) < 200:  # what more documents share is a phrase, and does not make any two of them similar alone
            shared.update((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    equal = defaultdict(list)
    for name, of_text in sets.items():
        equal[of_text].append(name)
    pairs = {pair: 1.0 for names in equal.values() for pair in pairwise(names)}
    for a, b in shared:
        common = len(sets[a] & sets[b])
        value = common / (len(sets[a]) + len(sets[b]) - common)
        if value >= 0.3:
            pairs[a, b] = value
    return pairs


def rows_of(corpus: Corpus) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """By id: the rule a document fell by, the texts past the rules on single documents, the texts that were kept."""
    fallen = {}
    for file in (*corpus.stages.glob("clean/*.dropped.parquet"), *corpus.documents.glob("*.dropped.parquet")):
        table = pq.read_table(file, columns=["id", "rule"])
        fallen.update(zip(table["id"].to_pylist(), table["rule"].to_pylist(), strict=True))
    clean = {}
    for file in corpus.stages.glob("clean/*.kept.parquet"):
        table = pq.read_table(file, columns=["id", "text"])
        clean.update(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    kept = {}
    for file in find_files([corpus.documents]):
        for raw in read_raw(file):
            kept[json.loads(raw.data)["meta"]["id"]] = raw.text()
    return fallen, clean, kept


def mended(kind: str, text: str, original: str) -> bool:
    """Whether the trouble of this kind is gone from a kept text."""
    if kind == "mojibake":
        before, after = (Counter(re.findall(r"[^\W_]{3,}", unicodedata.normalize("NFC", t))) for t in (original, text))
        return (before & after).total() >= 0.9 * before.total()
    if kind == "markup":
        return "<p" not in text and "<div" not in text
    return kind == "mail" and "@mail.example" not in text and "(495)" not in text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXTS")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    pool = [json.loads(raw.data) for file in find_files(options.texts) for raw in read_raw(file)]
    chosen = {document["text"]: document for document in pool if 60 <= len(document["text"].split()) <= 3000}
    documents = draw.sample(list(chosen.values()), min(options.documents, len(chosen)))
    originals = {str(number): document["text"] for number, document in enumerate(documents)}
    options.output.mkdir(parents=True, exist_ok=True)
    source = options.output / "planted.jsonl"
    with open(source, "w") as out:
        for line in plant(documents, draw):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    settings = CorpusSettings.load(
        Path(__file__).parent.parent / "configs" / "corpus" / "planted.toml",
        [f"output={options.output / 'corpus'}", f"parts=[{{name='web', source={{kind='jsonl', paths=['{source}']}}}}]"],
    )
    corpus = build(settings, Engine(), print)
    fallen, clean, kept = rows_of(corpus)

    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for name in (*fallen, *kept):
        kind, number = name.rsplit("-", 1)
        if kind.startswith(("near", "exact")):
            continue
        fate = "kept"
        if name in fallen:
            fate = fallen[name]
        elif kind != "clean" and mended(kind, kept[name], originals.get(number, "")):
            fate = "mended"
        kinds[kind][fate] += 1
    rows = [
        {
            "kind": kind,
            "documents": fates.total(),
            "caught": f"{1 - fates['kept'] / fates.total():.1%}",
            "by": ", ".join(f"{fate} {count}" for fate, count in fates.most_common() if fate != "kept"),
        }
        for kind, fates in sorted(kinds.items())
    ]
    report("planted trouble", rows, None)

    pairs = similar_pairs(clean)
    apart = {name for name in clean if fallen.get(name) != "duplicates"}
    levels = []
    for low in (0.3, 0.5, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0):
        high = {0.3: 0.5, 0.5: 0.7, 1.0: 1.1}.get(low, low + 0.05)
        of_level = [pair for pair, value in pairs.items() if low <= value < high]
        cut = sum(not (a in apart and b in apart) for a, b in of_level)
        levels.append({"true Jaccard": f"{low:g} to {high:g}", "pairs": len(of_level), "cut to one": cut})
    report("pairs by their exact similarity", levels, None)
    true = [pair for pair, value in pairs.items() if value >= SIMILARITY]
    found = sum(not (a in apart and b in apart) for a, b in true)
    partnered = {name for pair in true for name in pair}
    dropped = [name for name, rule in fallen.items() if rule == "duplicates"]
    right = sum(name in partnered for name in dropped)
    summary = [
        {
            "pairs at 0.8 or more": len(true),
            "recall": round(found / len(true), 4),
            "dropped": len(dropped),
            "precision": round(right / len(dropped), 4),
        }
    ]
    report("near duplicates", summary, None)
    by_rule = Counter(fallen.values())
    clean_fallen = Counter(rule for name, rule in fallen.items() if name.startswith("clean"))
    rules = [
        {"rule": rule, "dropped": count, "of them planted": count - clean_fallen[rule]}
        | {"share of untouched documents": f"{clean_fallen[rule] / kinds['clean'].total():.1%}"}
        for rule, count in by_rule.most_common()
    ]
    report("what each rule dropped", rules, None)
    if options.json is not None:
        tables = {"planted": rows, "levels": levels, "near duplicates": summary, "rules": rules}
        options.json.write_text(json.dumps(tables, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
