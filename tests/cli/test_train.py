"""``nearfar train``: recipes, what wins over them, and running one again."""

from __future__ import annotations

import json

import pytest
import yaml
from safetensors.torch import load_file

from nearfar.cli import run
from nearfar.data import LabelledTexts, write_beir, write_labelled, write_pairs
from tests.retrieval.training.runs import PAIRS, assert_equal_states, everything, small_model, tiny_dataset


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    small_model().save_pretrained(str(folder / "model"))
    write_pairs(PAIRS, folder / "pairs.jsonl")
    write_labelled(LabelledTexts(PAIRS.queries, PAIRS.labels), folder / "texts.jsonl")
    write_beir(tiny_dataset(), folder / "beir", "dev")
    return folder


@pytest.fixture
def recipe(files, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {files / 'model'}\n"
        f"data: {files / 'pairs.jsonl'}\n"
        f"dev: {files / 'beir'}\n"
        f"output: {tmp_path / 'run'}\n"
        "loss: circle\n"
        "loss_options: {gamma: 32}\n"
        "learning_rate: 1e-2\n"
        "batch_size: 4\n"
        "save_every: 3\n"
    )
    return path


def result(capsys, *words):
    capsys.readouterr()
    assert run([str(word) for word in words] + ["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, *words):
    capsys.readouterr()
    assert run([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_recipe_trains_and_its_runs_recipe_gives_the_same_run(capsys, recipe, tmp_path):
    first = result(capsys, "train", recipe)
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert kept["loss_options"] == {"gamma": 32}
    assert kept["learning_rate"] == 0.01
    assert kept["warmup_share"] == 0.1  # a default, so the recipe is complete
    again = result(capsys, "train", tmp_path / "run" / "recipe.yaml", "--output", tmp_path / "again")
    assert first["metrics"] == again["metrics"]
    assert_equal_states(everything(tmp_path / "run"), everything(tmp_path / "again"))
    assert yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text()) == kept
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["loss"]["gamma"] == 32
    assert facts["data"]["rows"] == len(PAIRS)
    assert {"nearfar", "torch", "python"} <= set(facts["versions"])
    assert "gamma" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_every_key_can_be_given_beside_the_recipe(capsys, recipe, tmp_path):
    result(
        capsys, "train", recipe, "--output", tmp_path / "other", "--epochs", 2, "--option", "m=0.3",
        "--set", "loss_options.gamma=64", "--set", "max_grad_norm=0.5", "--set", "report_to=[]", "--seed", 3,
    )  # fmt: skip
    kept = yaml.safe_load((tmp_path / "other" / "recipe.yaml").read_text())
    assert kept["loss_options"] == {"gamma": 64, "m": 0.3}
    assert [kept["epochs"], kept["max_grad_norm"], kept["seed"]] == [2, 0.5, 3]
    assert not (tmp_path / "run").exists()


def test_several_data_sets_with_a_loss_each(capsys, recipe, files, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content |= {
        "data": {"pairs": str(files / "pairs.jsonl"), "texts": str(files / "texts.jsonl")},
        "loss": {"pairs": "info-nce", "texts": "nbc-softmax"},
        "loss_options": {"pairs": {"temperature": 0.1}},
        "dev_texts": str(files / "texts.jsonl"),
    }
    recipe.write_text(yaml.safe_dump(content))
    found = result(capsys, "train", recipe)
    assert {"beir_R@1", "classes_MAP@R"} <= set(found["metrics"])
    state = load_file(tmp_path / "run" / "model" / "loss.safetensors")
    assert any(name.startswith("texts.loss.") for name in state)


def test_a_recipe_with_a_miner(capsys, recipe, tmp_path):
    with recipe.open("a") as stream:
        stream.write("miner: {group_size: 2, samples_per_class: 2, proxy_dim: 4}\n")
    result(capsys, "train", recipe, "--epochs", 2)
    again = result(capsys, "train", tmp_path / "run" / "recipe.yaml", "--output", tmp_path / "again")
    assert again["metrics"]
    assert_equal_states(everything(tmp_path / "run"), everything(tmp_path / "again"))


def test_a_recipe_with_mixed_examples(capsys, recipe, tmp_path):
    """Whose draws resume with the loss."""
    result(
        capsys, "train", recipe, "--set", 'loss_options.mixing={"alpha": 1.5}', "--set", "loss_options.synthesis=true"
    )
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["loss"]["mixing"]["alpha"] == 1.5
    result(capsys, "train", tmp_path / "run" / "recipe.yaml", "--output", tmp_path / "again")
    assert_equal_states(everything(tmp_path / "run"), everything(tmp_path / "again"))


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("lerning_rate: 1\n", [], "unknown key of a recipe 'lerning_rate'; did you mean learning_rate"),
        ("epochs: never\n", [], "epochs='never'"),
        ("batch_size: 0\n", [], "batch_size=0"),
        ("precision: bf8\n", [], "precision='bf8'"),
        ("miner: {grup_size: 4}\n", [], "unknown option of the miner 'grup_size'; did you mean group_size"),
        ("lora: {rnk: 4}\n", [], "unknown option 'rnk'; did you mean rank"),
        ("loss: [circle\n", [], "recipe.yaml, line"),
        ("", ["--set", "epochs"], "'epochs' is not key=value"),
        ("", ["--set", "loss.gamma=2"], "loss is 'circle', not a table"),
        ("", ["--set", "trainer_args.sed=2"], "unknown training argument 'sed'"),
        ("", ["--loss", "cirle"], "did you mean circle"),
        ("", ["--set", "loss_options.mixing=3"], "mixing=3 must be true, or a table of options of Metrix"),
    ],
)
def test_a_mistake_is_named_in_one_line(capsys, recipe, text, words, message):
    content = recipe.read_text()
    if text:
        key = text.split(":")[0]
        content = "".join(line for line in content.splitlines(True) if not line.startswith(f"{key}:")) + text
    recipe.write_text(content)
    assert message in fails(capsys, "train", recipe, *words)


def test_what_is_missing_is_named(capsys, files, tmp_path):
    assert "model is missing" in fails(capsys, "train", files / "pairs.jsonl", "--output", tmp_path / "run")
    assert "output is missing" in fails(capsys, "train", files / "pairs.jsonl", "--model", "m")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert "holds no keys" in fails(capsys, "train", empty)
    assert "nowhere.yaml" in fails(capsys, "train", tmp_path / "nowhere.yaml")
