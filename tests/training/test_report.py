"""The report: everything is in it, nothing is fetched, and text stays text."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yalm.cli import app
from yalm.errors import YalmError
from yalm.training import report
from yalm.training.loop import train
from yalm.training.metrics import read_metrics

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "source", "wbr"}


class Page(HTMLParser):
    """Checks that every element is closed in turn; collects ids, references and the text by element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: dict[str, str] = {}
        self.tags: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "data", "action"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, token_folders: dict[str, Path]) -> Path:
    from yalm.training.settings import TrainSettings

    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = TrainSettings.parse(
        {
            "output": str(folder),
            "model": {"embedding_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24},
            "data": {
                "parts": [{"name": "first", "path": str(token_folders["first"])}],
                "validation": [{"name": "held <out>", "path": str(token_folders["held_out"]), "language": "<ru>"}],
                "sequence_length": 16,
            },
            "batch": {"sequences": 2, "micro_sequences": 2},
            "schedule": {"tokens": 256, "warmup_tokens": 32},
            "validation": {"every_steps": 2, "sequences": 2},
            "checkpoint": {"every_steps": 4},
            "metrics": {"every_steps": 2, "tensorboard": False},
        },
        "test",
    )
    train(settings)
    records = [
        {"language": "ru", "prefix": "Дом <b>", "suffix": " & </p><script>alert(1)</script>\nстоит"},
        {"prefix": "", "suffix": "no language here", "other": 1},
    ]
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_it_holds_all_and_fetches_nothing(run_folder: Path) -> None:
    path = report.write_report(run_folder)
    assert path == run_folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 6
    assert {"path", "use", "clippath"} <= set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|<(script|link|img|iframe)\b", text)
    assert "#010203" not in text
    captions = page.text["figcaption"]
    assert all(title in captions for title in ("Loss", "Validation", "Learning rate", "Gradient norm", "phases"))
    validation = read_metrics(run_folder)[-1]["validation"]["<ru>"]
    assert f"{validation['bits_per_byte']:.3f}" in page.text["b"]
    assert "sequence_length = 16" in page.text["pre"]
    assert "first" in page.text["td"]


def test_text_is_escaped_and_kept(run_folder: Path) -> None:
    text = report.write_report(run_folder).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<ru>" not in text
    assert "Дом <b>" in page.text["b"]
    assert " & </p><script>alert(1)</script>\nстоит" in page.text["p"]
    assert "no language here" in page.text["p"]
    assert "<ru>" in page.text["text"]  # the legend of the curves


def test_the_curves_are_those_of_the_metrics() -> None:
    def training(step: int, rate: float, forward: float) -> dict[str, object]:
        seconds = {"batch": 0.0, "forward": forward, "backward": 1.0, "step": 1.0}
        return {"step": step, "tokens": 10 * step, "loss": 9.0 - step, "tokens_per_second": rate, "mfu": rate / 10} | {
            "seconds": seconds
        }

    records = [training(1, 2.0, 1.0), {"step": 1, "tokens": 10, "validation": {"ru": {}}}, training(2, 1.0, 2.0)]
    numbers = report.headline(records)
    assert numbers["tokens_per_second"] == pytest.approx((2 * 3 + 1 * 4) / 7)
    assert numbers["mfu"] == pytest.approx((0.2 * 3 + 0.1 * 4) / 7)
    assert numbers["minutes"] == pytest.approx(7 / 60)
    assert (numbers["tokens"], numbers["loss"], numbers["validation"]) == (20, 7.0, {"ru": {}})
    shares = report.phase_shares([record for record in records if "loss" in record])
    assert shares == pytest.approx({"batch": 0, "forward": 3 / 7, "backward": 2 / 7, "step": 2 / 7})
    many = list(map(float, range(1001)))
    thin = report._thin(many)
    assert len(thin) <= report.MOST_POINTS
    assert thin[:2] == [1.0, 4.0]
    assert thin[-1] == 999.5


def test_a_run_without_checkpoint_samples_or_tokens_is_reported_as_far_as_it_is(
    run_folder: Path, tmp_path: Path
) -> None:
    for name in ("settings.toml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    settings = (tmp_path / "settings.toml").read_text()
    (tmp_path / "settings.toml").write_text(re.sub(r'path = ".*"', 'path = "gone"', settings))
    text = report.write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "Written by the model" not in text
    assert "<h2>Model" not in text
    assert "<h2>Data" not in text
    assert text.count("<svg") == 6


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(YalmError, match="no run of `yalm train`"):
        report.write_report(tmp_path)
    (tmp_path / "settings.toml").write_bytes((run_folder / "settings.toml").read_bytes())
    with pytest.raises(YalmError, match="no step has been recorded yet"):
        report.write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes((run_folder / "metrics.jsonl").read_bytes())
    for wrong in ("{", "[]"):
        (tmp_path / "samples.jsonl").write_text(wrong)
        with pytest.raises(YalmError, match=r"samples.jsonl: not lines of JSON objects"):
            report.write_report(tmp_path)


def test_missing_packages_are_named(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(YalmError, match=r"the report needs matplotlib; run: pip install 'openyalm\[report\]'"):
        report.write_report(run_folder)


def test_the_command_prints_the_path(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(run_folder)])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == str(run_folder / "report.html")
