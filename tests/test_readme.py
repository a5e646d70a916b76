"""Every command of the README is run; those of the other pages are read by the command line they belong to."""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from yalm.cli import app
from yalm.model.costs import parameters
from yalm.model.presets import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?ms)^```(sh|python)\n(.*?)^```$")
PAGES = sorted((ROOT / "docs").glob("*.md"))


def write_texts(folder: Path) -> None:
    """Documents of made-up words, enough to fill a vocabulary of a few thousand."""
    draw = random.Random(0)
    for language, consonants, vowels in (("ru", "бвгдзклмнпрст", "аеиоуыя"), ("en", "bcdfghklmnprst", "aeiouy")):
        (folder / language).mkdir(parents=True)
        syllables = [a + b for a in consonants for b in vowels]
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(4_000)]
        for number in range(8):
            lines = (" ".join(draw.choices(words, k=12)).capitalize() + "." for _ in range(300))
            (folder / language / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")


def test_its_blocks_run_in_order(tmp_path: Path) -> None:
    blocks = BLOCK.findall(README)
    made = [code for _, code in blocks if "make " in code]
    assert [code.split() for code in made] == [["make", "demo", "make", "test"]]
    output = run_blocks(tmp_path, [block for block in blocks if block[1] not in made and "deepspeed" not in block[1]])
    assert "runs/mine/report.html" in output
    assert "runs/two/checkpoints/step-00000020" in output
    assert "The house" in output
    assert {kind for kind, _ in blocks} == {"sh", "python"}


@pytest.mark.slow
def test_its_deepspeed_block_runs(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    blocks = BLOCK.findall(README)
    last = next(index for index, (_, code) in enumerate(blocks) if "deepspeed" in code)
    output = run_blocks(tmp_path, [block for block in blocks[: last + 1] if "make " not in block[1]])
    assert "runs/three/checkpoints/step-00000020" in output


def run_blocks(folder: Path, blocks: list[tuple[str, str]]) -> str:
    """Run blocks of code in a folder with texts; what they print."""
    write_texts(folder / "texts")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    output = ""
    for kind, code in blocks:
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        output += done.stdout
    return output


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", re.findall(r"(?m)^make (\S+)$", README))
def test_its_make_targets_exist(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_its_table_of_sizes_is_that_of_the_presets() -> None:
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in re.findall(r"(?m)^\| (`.*) \|$", README)
        if len(cells := line.split(" | ")) == 10
    }
    assert list(rows) == list(PRESETS)
    for name, config in PRESETS.items():
        total = parameters(config)["total"]
        wanted = f"{total / 1e9:.1f} B" if total >= 1e9 else f"{total / 1e6:.1f} M"
        assert rows[name][0] == wanted
        assert rows[name][2:4] == [f"{config.embedding_size:,}", f"{config.hidden_size:,}"]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_other_pages_are_understood(page: Path) -> None:
    command = typer.main.get_command(app)
    for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in code.replace("\\\n", " ").splitlines() if kind == "sh" else ():
            if line.startswith("yalm "):
                understand(command, shlex.split(line, comments=True)[1:])


def understand(command: Any, arguments: list[str]) -> None:
    """Parse the arguments without running anything; the parser ends with an error for what it does not know."""
    command.make_context("yalm", list(arguments))
    if subcommands := getattr(command, "commands", None):
        understand(subcommands[arguments[0]], arguments[1:])
