"""The search, the published runs, the dry run and the command."""

import json

import pytest
from typer.testing import CliRunner

from yalm.cli import app
from yalm.errors import YalmError
from yalm.model.costs import parameters
from yalm.model.network import ModelConfig
from yalm.model.presets import preset
from yalm.planning.dry_run import dry_run
from yalm.planning.hardware import gpu
from yalm.planning.memory import Layout, bytes_per_rank
from yalm.planning.published import FITTED, RUNS, error, table
from yalm.planning.search import USABLE, Question, best, layouts, plan
from yalm.planning.time import step

YALM = preset("yalm-100b")
QUESTION = Question(gpus=800, gpu="a100-80gb", tokens=300e9, sequence=1024)


def question(**changes: object) -> Question:
    return Question.parse(QUESTION.model_dump() | changes, "yalm plan")


def test_published_runs_are_predicted() -> None:
    found = table()
    assert found["tested"] >= 25
    assert found["median_error"] < 0.08
    assert found["largest_error"] < 0.2
    assert found["elsewhere"] >= 6
    assert found["median_error_elsewhere"] < 0.12


def test_only_the_fitted_runs_were_fitted() -> None:
    assert len(FITTED) == 4 < len(RUNS) / 8
    assert all(abs(error(run)) < 0.01 for run in RUNS if run.name in FITTED)
    assert {run.name for run in RUNS} >= set(FITTED)


def test_models_of_other_shapes_keep_their_weights() -> None:
    published = {
        "llm-foundry 7B, 8 A100": 6658859008,
        "llm-foundry 70B, 64 H100": 64862437376,
        "Megatron-LM 145.6B": 145.6e9,
        "BLOOM-176B": 176.2e9,
        "GPT-NeoX-20B": 20.55e9 - 50432 * 6144,  # whose output is not tied
    }
    counts = {run.name: parameters(run.config)["total"] for run in RUNS}
    for name, count in published.items():
        assert counts[name] == pytest.approx(count, rel=0.01), name


def test_the_makers_utilization_gives_the_makers_days() -> None:
    # 6 x 100.95e9 weights x 300e9 tokens in 65 days on 800 A100 are 12.9 %; with attention, 13.1 %.
    assert plan(YALM, question(mfu=0.131))["days"] == pytest.approx(65, rel=0.02)


def test_the_best_layout_fits_and_is_the_fastest_that_does() -> None:
    device, chosen = gpu("a100-80gb"), best(YALM, QUESTION)
    assert bytes_per_rank(YALM, chosen)["total"] <= USABLE * device.memory
    assert chosen.ranks == 800
    assert chosen.batch_tokens == pytest.approx(QUESTION.batch, rel=0.25)
    speed = chosen.batch_tokens / step(YALM, chosen, device).seconds
    for other in layouts(YALM, QUESTION):
        if bytes_per_rank(YALM, other)["total"] <= USABLE * device.memory:
            assert other.batch_tokens / step(YALM, other, device).seconds <= speed


def test_what_is_asked_for_is_kept() -> None:
    asked = {"tensor": 4, "pipeline": 4, "zero": 1, "recompute": "full", "precision": "fp16"}
    layout = plan(YALM, question(**asked))["layout"]
    assert {name: layout[name] for name in asked} == asked


@pytest.mark.parametrize("zero", [1, 3])
def test_a_stage_asked_for_is_searched_over_every_mesh_that_has_it(zero: int) -> None:
    found = list(layouts(YALM, question(zero=zero)))
    assert {layout.zero for layout in found} == {zero}
    assert (max(layout.pipeline for layout in found) > 1) == (zero == 1)
    assert max(layout.tensor for layout in found) == 8


def test_more_gpus_are_sooner_done_and_less_used() -> None:
    few, many = (plan(YALM, question(gpus=gpus)) for gpus in (200, 800))
    assert many["days"] < few["days"]
    assert many["mfu"] <= few["mfu"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "a100-80g"}, "a100-80gb"),
        ({"gpus": 0}, "gpus"),
        ({"gpus": 8}, "does not fit"),
        ({"tensor": 3}, "gpus"),
        ({"zero": 4}, "zero"),
        ({"zero": 3, "pipeline": 2}, "zero 3"),
        ({"precision": "bf16", "gpu": "v100-32gb"}, "fp16"),
        ({"precision": "fp8"}, "precision"),
        ({"mfu": 1.5}, "mfu"),
        ({"tokens": float("inf")}, "tokens"),
        ({"batch": 1000, "tensor": 1, "pipeline": 1}, "--batch"),
        ({"pipeline": 100}, "layers"),
    ],
)
def test_bad_questions_get_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(YalmError, match=said) as raised:
        plan(YALM, question(**changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zero", [2, 3])
def test_a_dry_run_shards_as_the_formula_says(zero: int) -> None:
    odd = ModelConfig(
        vocab_size=1001, embedding_size=30, hidden_size=60, num_layers=3, num_heads=3, intermediate_size=101
    )
    for config in (odd, preset("25m")):
        for kind in dry_run(config, Layout(data=8, zero=zero, sequence=128)).values():
            assert kind["sharded"] == kind["formula"] > 0


def test_a_dry_run_of_100b_on_800_ranks() -> None:
    for kind in dry_run(YALM, Layout(data=800, sequence=1024)).values():
        assert abs(kind["error"]) < 0.01


def test_a_dry_run_is_of_zero_alone() -> None:
    with pytest.raises(YalmError, match="--tensor 1"):
        dry_run(YALM, Layout(data=100, tensor=8, sequence=1024))


def test_the_command_answers_in_json() -> None:
    arguments = ["plan", "yalm-100b", "--gpus", "800", "--gpu", "a100-80gb", "--tokens", "300e9", "--json"]
    facts = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert facts["days"] == pytest.approx(facts["steps"] * facts["step_seconds"] / 86400, rel=1e-3)
    assert 0.2 < facts["mfu"] < 0.7
    kinds = {"parameters", "gradients", "optimizer", "gathered", "reducing", "activations"}
    assert set(facts["bytes_per_rank"]) == kinds | {"loss", "reserved", "total"}
    assert sum(facts["step_parts"].values()) == pytest.approx(facts["step_seconds"])


def test_the_command_prints_tables() -> None:
    arguments = ["plan", "25m", "--tensor", "1", "--pipeline", "1", "--zero", "3", "--dry-run"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert all(word in shown for word in ("days", "MFU, predicted", "energy", "pretended ranks", "save every"))
    shown = CliRunner().invoke(app, ["plan", "--published"], catch_exceptions=False).stdout
    assert "median error" in shown


def test_the_command_wants_a_preset() -> None:
    assert isinstance(CliRunner().invoke(app, ["plan"]).exception, YalmError)
