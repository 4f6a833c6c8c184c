"""clvr probe as a person uses it."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image

from clvr import builtin
from clvr.cli import main

from .vlm_fixtures import completion, serving


def run(capsys, *arguments):
    code = main(["probe", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_prompts_are_listed_with_their_parts_easiest_first(capsys):
    code, out, _ = run(capsys, "prompts", "two red circles above a blue square", "a circle", "--tiers", 2)
    head, first, second = out.splitlines()
    assert code == 0
    assert head.split() == ["tier", "complexity", "N", "E", "W", "constraints", "prompt"]
    assert first.split() == ["1", "1.79", "1", "0", "2", "-", "a", "circle"]
    assert second.split()[:5] == ["2", "10.24", "3", "4", "7"]


def test_a_set_of_prompts_goes_through_to_results_and_a_picture(capsys, tmp_path):
    listed = tmp_path / "prompts.txt"
    listed.write_text("a circle\n\na red circle\n" + json.dumps({"prompt": "three green crosses and a red square"}))
    made = tmp_path / "set.jsonl"
    code, out, err = run(capsys, "prompts", listed, "two circles", "--tiers", 2, "--fill", 3, "--json", made)
    assert code == 0
    assert "trimmed to fill tiers" in err
    assert "(trimmed)" in out
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    assert {"prompt", "complexity", "tier", "parts"} <= rows[0].keys()
    rng = random.Random(1)
    files = []
    for name in ("one-shot", "loop"):
        files.append(tmp_path / f"{name}.jsonl")
        shots = [{**row, "passed": rng.random() < 0.6, "recall": 0.5} for row in rows for _ in range(3)]
        files[-1].write_text("\n".join(map(json.dumps, shots)))
    plot, numbers = tmp_path / "p.png", tmp_path / "n.json"
    code, out, _ = run(capsys, "results", *files, "--tiers", 2, "--plot", plot, "--json", numbers)
    assert code == 0
    assert f"one-shot: {len(rows)} prompts, {3 * len(rows)} images" in out
    assert out.count("AUC: pass") == 2
    assert Image.open(plot).width == 1100
    assert [r["name"] for r in json.loads(numbers.read_text())["results"]] == ["one-shot", "loop"]


def results(folder, name, passing):
    rows = [{"prompt": f"p{n}", "complexity": n, "passed": n < passing} for n in range(12)]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_capacities_give_the_power_law(capsys, tmp_path):
    files = [results(tmp_path, name, n) for name, n in (("a", 3), ("b", 6), ("c", 12))]
    capacities = [option for value in (100, 200, 400) for option in ("--capacity", value)]
    numbers, plot = tmp_path / "n.json", tmp_path / "p.png"
    code, out, _ = run(capsys, "results", *files, "--tiers", 4, *capacities, "--json", numbers, "--plot", plot)
    assert code == 0
    assert "I_eff^" in out
    assert json.loads(numbers.read_text())["fit"]["exponent"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prompts", "a cat"], "add --vlm"),
        (["prompts", "none.txt"], "There is no file none.txt"),
        (["prompts", "a circle", "--weights", "tex=1"], "no complexity weight 'tex'"),
        (["prompts", "a circle", "--weights", "alpha"], "sets no weight"),
        (["prompts", "a circle", "--tiers", "0"], "0 tiers"),
        (["weights", "none.safetensors"], "There is no"),
        (["results", "none.jsonl"], "There is no file"),
        (["results", "a.jsonl", "--plot", "a.jpg"], "does not end in .png"),
        (["results", "a.jsonl", "--capacity", "1", "--capacity", "2"], "1 files have 2 capacities"),
        (["results", "a.jsonl", "a.jsonl"], "given twice"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(capsys, arguments, said):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_a_vlm_reads_what_the_grammar_does_not(capsys):
    graph = {"entities": [{"name": "cat", "count": 1, "attributes": ["black"]}], "relations": [], "constraints": []}
    with serving(completion(json.dumps(graph))) as server:
        code, out, _ = run(capsys, "prompts", "a black cat", "--vlm", server.url)
    assert code == 0
    assert out.splitlines()[1].split()[:5] == ["1", "3.08", "1", "1", "3"]


def test_the_built_in_model_s_capacity_is_said_by_kind_of_layer_and_by_both_definitions(capsys, tmp_path):
    numbers = tmp_path / "ranks.json"
    code, out, err = run(capsys, "weights", builtin.PATH, "--json", numbers)
    assert code == 0
    (report,) = json.loads(numbers.read_text())
    assert f"I_eff {report['energy']:.2f} (energy; sigma {report['sigma']:.2f})" in out
    assert "transformer_blocks.#.attn.to_q.weight" in out
    assert "MB of memory" in err
    code, out, _ = run(capsys, "weights", builtin.PATH, "--entropy", "sigma", "--each")
    assert f"I_eff {report['sigma']:.2f} (sigma" in out
    assert all(row["layer"] in out for row in report["layers"])
