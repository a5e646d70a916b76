"""Chains against a naive walk up from every leaf; masks; mentions."""

import re

from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.sources.threads import NOBODY, Turn, chains, without_mentions, write


@st.composite
def threads(draw: st.DrawFn) -> list[Turn]:
    """Turns in any order: some dead, some whose parent is missing, some in circles."""
    count = draw(st.integers(0, 12))
    names = [str(number) for number in range(count)]
    turns = [
        Turn(
            name,
            draw(st.sampled_from([*names, "", "lost"])) if draw(st.booleans()) else str(int(name) // 2 - (name == "0")),
            draw(st.sampled_from(["anna", "boris", *NOBODY])),
            draw(st.sampled_from(["text", "more", ""])),
        )
        for name in names
    ]
    return draw(st.permutations(turns))


def naive_paths(turns: list[Turn], max_turns: int) -> set[tuple[str, ...]]:
    """For every live turn the way up to a root, if there is one; of these, those that no other continues."""
    known = {turn.id: turn for turn in turns}
    ways = set()
    for turn in turns:
        way: list[Turn] = [turn]
        while way[-1].parent in known and len(way) <= len(turns):
            way.append(known[way[-1].parent])
        if len(way) <= len(turns) and all(step.text for step in way):
            ways.add(tuple(step.id for step in reversed(way))[:max_turns])
    return {way for way in ways if not any(len(other) > len(way) and other[: len(way)] == way for other in ways)}


def ids(found: list[Turn]) -> tuple[str, ...]:
    return tuple(turn.id for turn in found)


@given(threads(), st.integers(1, 6))
def test_every_path_from_a_root_to_a_leaf_comes_once(turns: list[Turn], max_turns: int) -> None:
    found = [ids(chain) for chain in chains(turns, "all", max_turns)]
    assert len(found) == len(set(found))
    assert set(found) == naive_paths(turns, max_turns)


@given(threads(), st.integers(1, 6))
def test_the_longest_is_one_of_all_and_goes_where_most_was_said(turns: list[Turn], max_turns: int) -> None:
    every = [ids(chain) for chain in chains(turns, "all", max_turns)]
    whole = naive_paths(turns, len(turns) + 1)
    reached = {way[:length] for way in whole for length in range(1, len(way) + 1)}

    def below(way: tuple[str, ...]) -> int:
        return sum(other[: len(way)] == way for other in reached)

    found = [ids(chain) for chain in chains(turns, "longest", max_turns)]
    assert len(found) == bool(every)
    for chain in found:
        assert chain in every
        for length in range(len(chain)):
            rivals = [way for way in reached if len(way) == length + 1 and way[:length] == chain[:length]]
            assert below(chain[: length + 1]) == max(map(below, rivals))


def test_a_thread_may_be_deep_and_the_first_of_equals_counts() -> None:
    deep = [Turn(str(number), str(number - 1), "", "text") for number in range(20_000)]
    (chain,) = chains(deep, "all", 30_000)
    assert len(chain) == 20_000
    (chain,) = chains(deep, "longest", 30_000)
    assert len(chain) == 20_000
    fork = [Turn("a", "", "", "1"), Turn("b", "a", "", "2"), Turn("c", "a", "", "3"), Turn("b", "", "", "again")]
    assert [ids(chain) for chain in chains(fork, "all", 9)] == [("a", "b"), ("a", "c")]
    assert [ids(chain) for chain in chains(fork, "longest", 9)] == [("a", "b")]


@given(st.lists(st.sampled_from(["anna", "boris", "clara", *NOBODY]), min_size=1, max_size=60))
def test_masks_are_stable_and_come_in_order(authors: list[str]) -> None:
    chain = [Turn(str(number), "", author, "text\n\n more ") for number, author in enumerate(authors)]
    paragraphs = write(chain, "mask", "\n\n").split("\n\n")
    masks = [paragraph.partition(": ")[0] for paragraph in paragraphs]
    assert len(masks) == len(authors)
    assert all(paragraph.endswith(": text\nmore") for paragraph in paragraphs)
    for one, mask in zip(authors, masks, strict=True):
        if one in NOBODY:
            assert masks.count(mask) == 1
        else:
            assert [other == mask for other in masks] == [other == one for other in authors]
    firsts = list(dict.fromkeys(masks))
    assert firsts == sorted(firsts, key=lambda mask: (len(mask), mask))
    assert firsts[0] == "A"
    assert all(re.fullmatch("[A-Z]+", mask) for mask in firsts)


def test_names_are_left_out_or_kept() -> None:
    chain = [Turn("1", "", "anna", "Hello"), Turn("2", "1", "[deleted]", "Hi\n\n\nthere"), Turn("3", "2", "", "Bye")]
    assert write(chain, "omit", "\n~\n") == "Hello\n~\nHi\nthere\n~\nBye"
    assert write(chain, "keep", "\n\n") == "anna: Hello\n\nHi\nthere\n\nBye"


def test_mentions_go_from_the_start_alone() -> None:
    vk = "[id12|Анна], [club3:bp-3_4|Клуб] да, [id5|Борис] прав"
    assert without_mentions(vk, "vk") == "да, [id5|Борис] прав"
    assert without_mentions("/u/some_one, u/other-1 yes, u/third", "reddit") == "yes, u/third"
    assert without_mentions("u/name's post", "reddit") == "u/name's post"
    assert without_mentions("u/name", "reddit") == ""
    assert without_mentions(vk, "pikabu") == vk
