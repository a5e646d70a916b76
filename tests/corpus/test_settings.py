"""Settings of a corpus: the files that come with the project, and every kind of source."""

from pathlib import Path
from typing import get_args

import pytest

from yalm.corpus.settings import AnySource, CorpusSettings, parse_source
from yalm.errors import YalmError

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs" / "corpus").glob("*.toml"))
KINDS = {member.model_fields["kind"].default: member for member in get_args(get_args(AnySource)[0])}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_files_that_come_along_are_valid(file: Path) -> None:
    settings = CorpusSettings.load(file)
    assert CorpusSettings.parse(dict(settings.model_dump()), "again") == settings


def test_the_composition_is_that_of_yalm() -> None:
    settings = CorpusSettings.load(next(file for file in CONFIGS if file.stem == "yalm"))
    shares = {part.name: part.weight for part in settings.parts}
    assert shares.pop("pile") == 25
    assert sum(shares.values()) == 76  # as published, rounded to halves
    assert max(part.max_epochs for part in settings.parts) == 3


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_source_is_read_back_from_settings(kind: str) -> None:
    layouts = KINDS[kind].model_fields.get("layout")
    layout = {} if layouts is None else {"layout": get_args(layouts.annotation)[0]}
    source = parse_source({"kind": kind, "paths": ["a"], **layout})
    assert type(source) is KINDS[kind]
    assert parse_source(source.model_dump(mode="json")) == source


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{kind='pile', paths=['x'], sets=['Pile-CCC']}", "did you mean 'Pile-CC'"),
        ("{kind='pile', paths=['x'], set=['Pile-CC']}", "unknown key.*did you mean 'sets'"),
        ("{kind='wiki', paths=['x']}", "kind|wikipedia"),
        ("{kind='jsonl'}", "paths.*required"),
    ],
)
def test_a_wrong_source_is_one_line(source: str, words: str) -> None:
    with pytest.raises(YalmError, match=words) as error:
        CorpusSettings.load(None, ["output=x", f"parts=[{{name='a', source={source}}}]"])
    assert "\n" not in str(error.value)
