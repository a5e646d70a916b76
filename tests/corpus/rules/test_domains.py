"""Repetitive domains: counts against plain loops, shards cut anywhere, a shop beside a blog."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules import domains as module
from yalm.corpus.rules.domains import DomainsSettings, count_domains, domain_of, in_dropped, judge_domains

Page = tuple[str, str, bool]  # url, text, whether it is a near-duplicate of another page

urls = st.sampled_from(["", "http://a.ru/1", "https://www.A.ru/2", "http://b.org:80/", "http://президент.рф/x", "//c"])
lines = st.sampled_from(["", "  ", "купить", " купить\t", "buy now", "x", "\r", "ещё"])
pages = st.lists(st.tuples(urls, st.lists(lines, max_size=4).map("\n".join), st.booleans()), max_size=12)


def tables(shard: Sequence[Page], number: int = 0) -> tuple[pa.Table, pa.Table]:
    """The pages as a shard, and the table of its near-duplicates."""
    table = to_table(
        (Document(text, str(i), "web", url=url) for i, (url, text, _) in enumerate(shard)), "web", number << 32
    )
    cut = [number << 32 | i for i, (_, _, duplicate) in enumerate(shard) if duplicate]
    return table, pa.table({"uid": pa.array(cut, pa.uint64()), "survivor": pa.array([0] * len(cut), pa.uint64())})


def judge(folder: Path, shards: Sequence[Sequence[Page]], rule: DomainsSettings, rows: int = 1000) -> pa.Table:
    """What becomes of the domains, counted shard by shard."""
    files: tuple[list[Path], list[Path]] = ([], [])
    for number, shard in enumerate(shards):
        for name, table, paths in zip(("domains", "lines"), count_domains(*tables(shard, number)), files, strict=True):
            assert table.schema.equals(module.DOMAIN_COUNTS if name == "domains" else module.LINE_COUNTS)
            paths.append(folder / f"{name}-{number}.parquet")
            pq.write_table(table, paths[-1], row_group_size=rows)
    return judge_domains(*files, rule)


def plain(shard: Sequence[Page], template_documents: int) -> dict[str, tuple[int, int, float, float]]:
    """Documents, bytes, share of near-duplicates and of template text of each domain, in plain loops."""
    by_domain = defaultdict(list)
    for url, text, duplicate in shard:
        if domain_of(url):
            by_domain[domain_of(url)].append((text, duplicate))
    found = {}
    for domain, its_pages in by_domain.items():
        bodies = [[line.strip() for line in text.split("\n") if line.strip()] for text, cut in its_pages if not cut]
        standing = Counter(line for body in bodies for line in set(body))
        sizes = [(len(line.encode()), standing[line]) for body in bodies for line in body]
        template = sum(size for size, documents in sizes if documents >= template_documents)
        found[domain] = (
            len(its_pages),
            sum(len(text.encode()) for text, _ in its_pages),
            sum(cut for _, cut in its_pages) / len(its_pages),
            template / max(1, sum(size for size, _ in sizes)),
        )
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pages, st.integers(2, 3), st.integers(0, 12), st.sampled_from([1, 3, 1000]), st.sampled_from([8, 1 << 20]))
def test_shares_are_those_of_plain_loops_however_the_work_is_cut(
    tmp_path: Path, web: list[Page], template: int, cut: int, rows: int, batch: int
) -> None:
    rule = DomainsSettings(template_documents=template, min_documents=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH", batch)
        found = judge(tmp_path, [web[:cut], web[cut:]], rule, rows)
    assert found.schema.equals(module.DOMAINS)
    rows_found = {row.pop("domain"): row for row in found.to_pylist()}
    expected = plain(web, template)
    assert list(rows_found) == sorted(expected, key=str.encode)
    for domain, (documents, size, duplicate, template_share) in expected.items():
        row = rows_found[domain]
        assert (row["documents"], row["bytes"]) == (documents, size)
        assert (row["duplicate_share"], row["template_share"]) == pytest.approx((duplicate, template_share))
        assert row["dropped"] == bool(row["reason"]) == (duplicate > 0.75 or template_share > 0.5)


def made_web(seed: int) -> list[Page]:
    """A shop (templates), a mirror (near-duplicates), a blog with a menu, a small shop, and texts of no domain."""
    generator = random.Random(seed)

    def prose(words: int) -> str:
        return " ".join(f"слово{generator.randrange(5000)}" for _ in range(words))

    menu = "Главная\nКаталог\nДоставка и оплата по всей стране в течение трёх дней\nЗвоните нам с девяти до шести\n"
    web = [(f"https://shop.ru/{i}", f"{menu}Товар {i}\n{prose(5)}\nДобавить в корзину", False) for i in range(60)]
    web += [(f"https://mirror.org/{i}", prose(80), i % 10 > 0) for i in range(60)]
    web += [(f"https://author.blog.ru/{i}", f"{menu}{prose(60)}\n{prose(60)}", i % 10 == 0) for i in range(60)]
    web += [(f"https://kiosk.ru/{i}", f"{menu}Товар {i}", False) for i in range(12)]
    web += [("", menu, True)] * 30
    generator.shuffle(web)
    return web


def test_the_shop_and_the_mirror_fall_and_the_blog_stays(tmp_path: Path) -> None:
    web = made_web(1)
    found = judge(tmp_path, [web[:100], web[100:]], DomainsSettings())
    reasons = dict(zip(found["domain"].to_pylist(), found["reason"].to_pylist(), strict=True))
    assert reasons == {
        "shop.ru": "template text",
        "mirror.org": "near-duplicates",
        "author.blog.ru": "",
        "kiosk.ru": "",
    }
    fallen = in_dropped(tables(web)[0], found)
    assert fallen.tolist() == [url.startswith(("https://shop.ru", "https://mirror.org")) for url, _, _ in web]


@pytest.mark.parametrize(
    ("documents", "duplicates", "standing", "reason"),  # of the documents that are no duplicates a line stands in some
    [
        (20, 0, 10, ""),
        (20, 0, 11, "template text"),
        (20, 1, 10, "template text"),
        (20, 3, 9, ""),
        (19, 0, 19, ""),
        (20, 15, 0, ""),
        (20, 16, 0, "near-duplicates"),
        (19, 19, 0, ""),
    ],
)
def test_domains_at_the_thresholds(tmp_path: Path, documents: int, duplicates: int, standing: int, reason: str) -> None:
    own = [f"строка{number:02}" for number in range(documents - standing)]
    pages = [("http://a.ru", "строка--", False)] * standing + [("http://a.ru", line, False) for line in own]
    shard = [(url, line, place >= documents - duplicates) for place, (url, line, _) in enumerate(pages)]
    assert judge(tmp_path, [shard], DomainsSettings())["reason"].to_pylist() == [reason]


def test_lists_decide_before_measures_and_the_longest_name_before_shorter_ones(tmp_path: Path) -> None:
    rule = DomainsSettings(deny=("blog.ru", "kiosk.ru", "президент.рф"), allow=("author.blog.ru", "WWW.shop.ru", "ru"))
    web = [*made_web(2), ("http://other.blog.ru", "x", False), ("http://myblog.ru", "x", False)]
    found = judge(tmp_path, [[*web, ("http://xn--d1abbgf6aiiy.xn--p1ai/", "x", False)]], rule)
    dropped = set(found.filter(found["dropped"])["domain"].to_pylist())
    assert dropped == {"mirror.org", "kiosk.ru", "other.blog.ru", "xn--d1abbgf6aiiy.xn--p1ai"}


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://www.Example.COM:8080/a?b#c", "example.com"),
        ("http://user:word@news.example.com./", "news.example.com"),
        ("example.com/page", "example.com"),
        ("http://президент.рф/", "xn--d1abbgf6aiiy.xn--p1ai"),
        ("http://[::1]:80/", "::1"),
        ("http://[broken/", ""),
        ("", ""),
        ("/path/only", ""),
    ],
)
def test_domain_of(url: str, domain: str) -> None:
    assert domain_of(url) == domain


def test_an_empty_shard_counts_nothing(tmp_path: Path) -> None:
    assert judge(tmp_path, [[]], DomainsSettings()).num_rows == 0
    assert in_dropped(tables([])[0], module.DOMAINS.empty_table()).dtype == np.bool_
