"""The search, the published runs, the dry run and the command."""

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yalm.cli import app
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.costs import parameters
from yalm.model.presets import preset
from yalm.planning.dry_run import dry_run
from yalm.planning.hardware import gpu
from yalm.planning.memory import Layout, bytes_per_rank
from yalm.planning.picture import draw, mesh
from yalm.planning.published import FITTED, RUNS, error, table
from yalm.planning.search import CANDIDATES, USABLE, Question, best, candidates, layouts, plan
from yalm.planning.settings_file import run_settings
from yalm.planning.time import step
from yalm.training.loop import train
from yalm.training.settings import TrainSettings

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


def test_candidates_begin_with_the_best_and_are_a_mesh_each() -> None:
    found = candidates(YALM, QUESTION)
    assert found[0]["layout"] == best(YALM, QUESTION).model_dump()
    meshes = {tuple(one["layout"][name] for name in ("tensor", "pipeline", "zero")) for one in found}
    assert len(meshes) == len(found) == CANDIDATES
    speeds = [one["tokens_per_second"] for one in found if one["fits"]]
    assert speeds == sorted(speeds, reverse=True)
    too_large = candidates(YALM, question(tensor=1, pipeline=1))
    assert next((one["layout"]["zero"], one["fits"]) for one in too_large) == (3, True)
    assert {one["layout"]["zero"] for one in too_large if not one["fits"]} == {0, 1, 2}


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
        ({"moments": "fp16"}, "moments"),
        ({"moments": "bf16", "tensor": 2}, "moments bf16 and tensor above 1"),
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
    for config, moments in itertools.product((odd, preset("25m")), ("fp32", "bf16")):
        for kind in dry_run(config, Layout(data=8, zero=zero, sequence=128, moments=moments)).values():
            assert kind["sharded"] == kind["formula"] > 0


def test_bf16_moments_are_half_as_large_and_written_into_the_settings() -> None:
    whole, half = (plan(YALM, question(moments=moments, tensor=1, pipeline=1)) for moments in ("fp32", "bf16"))
    assert half["bytes_per_rank"]["optimizer"] == whole["bytes_per_rank"]["optimizer"] / 2
    assert half["reliability"]["checkpoint_bytes"] == whole["reliability"]["checkpoint_bytes"] * 8 / 12
    assert half["step_parts"]["optimizer"] < whole["step_parts"]["optimizer"]
    settings = [run_settings({"model": "yalm-100b", **facts}, YALM) for facts in (whole, half)]
    assert [each.get("optimizer") for each in settings] == [None, {"moments": "bf16"}]
    assert {layout.tensor for layout in layouts(YALM, question(moments="bf16"))} == {1}


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


def test_the_picture_shows_every_candidate(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    svg, png = tmp_path / "plan.svg", tmp_path / "plan.png"
    arguments = ["plan", "yalm-100b", "--gpus", "800", "--gpu", "a100-80gb", "--json", "--picture"]
    facts = json.loads(CliRunner().invoke(app, [*arguments, str(svg)], catch_exceptions=False).stdout)
    drawn = svg.read_text()
    for one in facts["candidates"]:
        assert f"<!-- {mesh(one['layout'])} -->" in drawn
        assert f"{one['tokens_per_second']:,.0f} tokens/s" in drawn
    for kind in (*facts["bytes_per_rank"], *facts["step_parts"]):
        assert (f"<!-- {kind} -->" in drawn) == (kind != "total")
    CliRunner().invoke(app, [*arguments, str(png)], catch_exceptions=False)
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(YalmError, match="must end in"):
        draw(facts, tmp_path / "plan.gif")


def test_the_settings_of_a_plan_train(tmp_path: Path, token_folders: dict[str, Path]) -> None:
    file = tmp_path / "run.toml"
    arguments = ["plan", "demo", "--gpus", "1", "--sequence", "24", "--batch", "96", "--tokens", "1e9"]
    arguments += ["--precision", "fp32", "--json", "--config", str(file)]
    facts = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    planned = TrainSettings.load(file)
    assert planned.tokens_per_step == facts["batch_tokens"] == 96
    assert planned.total_steps == pytest.approx(facts["steps"], rel=1e-3)
    folders = [{"name": name, "path": str(token_folders[name])} for name in ("first", "second")]
    parts = "[" + ", ".join(f'{{ name = "{one["name"]}", path = "{one["path"]}" }}' for one in folders) + "]"
    run = [f"data.parts={parts}", f"output={tmp_path / 'run'}", "schedule.tokens=192", "schedule.warmup_tokens=96"]
    here = ["compute.device=cpu", "compute.threads=1", "metrics.tensorboard=false"]
    assert train(TrainSettings.load(file, [*run, *here])).progress.step == 2


def test_the_settings_of_a_plan_are_its_layout() -> None:
    facts = {"model": "yalm-100b", **plan(YALM, question(tensor=4, pipeline=4, recompute="full", sequence=2048))}
    values, layout = run_settings(facts, YALM), facts["layout"]
    assert values["compute"]["tensor"] == values["compute"]["pipeline"] == 4
    assert values["compute"] | {"sequence": 2048} == {name: layout[name] for name in (*values["compute"], "sequence")}
    sequences = layout["data"] * layout["micro_batch"] * layout["accumulation"]
    assert values["batch"] == {"sequences": sequences, "micro_sequences": layout["micro_batch"]}
    assert values["model"] == {"preset": "yalm-100b", "max_positions": 2048}
    alone = {"model": "yalm-100b", **plan(YALM, question(tensor=1, pipeline=1))}
    assert not {"tensor", "pipeline"} & set(run_settings(alone, YALM)["compute"])


def test_the_command_prints_tables() -> None:
    arguments = ["plan", "25m", "--tensor", "1", "--pipeline", "1", "--zero", "3", "--dry-run"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert all(
        word in shown for word in ("days", "MFU, predicted", "energy", "pretended ranks", "save every", "each mesh")
    )
    shown = CliRunner().invoke(app, ["plan", "--published"], catch_exceptions=False).stdout
    assert "median error" in shown


def test_the_command_wants_a_preset() -> None:
    assert isinstance(CliRunner().invoke(app, ["plan"]).exception, YalmError)
