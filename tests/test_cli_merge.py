"""clvr merge and clvr linearity end to end on tiny models; recipes in YAML."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from clvr import cli
from clvr.cli.progress import MergeBar, line
from clvr.dswm import yaml
from clvr.dswm.merge import Progress
from clvr.dswm.recipe import Source, Strength
from clvr.errors import MissingFileError, SettingError
from clvr.flux2.keymap import to_bfl

from . import dswm_fixtures as tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def states():
    """Base, distilled and aligned, as their bf16 files hold them."""
    base = tiny.state()
    return [tiny.rounded(s) for s in (base, tiny.moved(base, 1, 0.028), tiny.moved(base, 2, 0.02))]


@pytest.fixture(scope="module")
def models(tmp_path_factory, states):
    """A folder with base.safetensors, distilled.safetensors, aligned.safetensors and lora.safetensors."""
    folder = tmp_path_factory.mktemp("models")
    for name, state in zip(("base", "distilled", "aligned"), states, strict=True):
        tiny.write_bfl(folder / f"{name}.safetensors", state)
    save_file(lora(), folder / "lora.safetensors")
    return folder


def lora():
    generator = torch.Generator().manual_seed(3)
    name = "diffusion_model.single_blocks.0.linear2"
    rows, columns = to_bfl(tiny.state())[f"{name.removeprefix('diffusion_model.')}.weight"].shape
    return {
        f"{name}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{name}.lora_B.weight": 0.001 * torch.randn(rows, 2, generator=generator),
    }


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def merge(models, out, *arguments, align="aligned"):
    sources = ("--base", models / "base.safetensors", "--distilled", models / "distilled.safetensors")
    return run("merge", *sources, "--align", f"{models / align}.safetensors", "--out", out, *arguments)


def same(path, expected):
    found = load_file(path)
    expected = to_bfl(expected)
    return found.keys() == expected.keys() and all(torch.equal(found[name], t) for name, t in expected.items())


def debris(folder):
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or "partial" in path.name]


def test_a_merge_is_written_reported_and_drawn(models, states, tmp_path, capsys):
    out, report, plot = tmp_path / "m.safetensors", tmp_path / "r.json", tmp_path / "p.png"
    assert merge(models, out, "--report", report, "--plot", plot, "--sign-conflict") == 0
    assert same(out, tiny.reference(*states))
    told = capsys.readouterr().out
    assert told.splitlines()[-3:] == [str(out), str(report), str(plot)]
    assert "m.safetensors: one file, BFL keys, bf16" in told
    assert "by chance" in told
    content = json.loads(report.read_text())
    assert content["whole"]["shift"]["D"] == pytest.approx(0.028, rel=0.05)
    assert content["whole"]["cosines"]["D·A1"] == pytest.approx(0, abs=0.05)
    assert Image.open(plot).width == 1100
    assert not debris(tmp_path)


def test_strengths_come_from_the_flags(models, states, tmp_path):
    out = tmp_path / "m.safetensors"
    sources = ["--base", models / "base.safetensors", "--distilled", models / "distilled.safetensors"]
    weights = ["--lambda-distilled", "0.5", "--align", f"{models / 'aligned.safetensors'}:0.25", "--dtype", "fp32"]
    assert run("merge", *sources, *weights, "--out", out) == 0
    assert same(out, tiny.reference(*states, strengths=(0.5, 0.25), dtype="fp32"))


def test_a_lora_needs_no_base(models, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    sources = ("--distilled", models / "distilled.safetensors", "--align", models / "lora.safetensors")
    assert run("merge", *sources, "--out", out) == 0
    assert "no base was given" in " ".join(capsys.readouterr().out.split())
    assert not same(out, tiny.rounded(tiny.state()))


def test_no_report_prints_the_path_alone(models, states, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    assert merge(models, out, "--no-report") == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert same(out, tiny.reference(*states))


def test_a_recipe_does_what_flags_do(models, states, tmp_path):
    recipe = models / "merge.yaml"
    recipe.write_text(
        "base: base.safetensors\n"
        "distilled: distilled.safetensors\n"
        "align:\n"
        "  - {path: aligned.safetensors, lambda: 0.5, blocks: {single: 0.25}}\n"
        f"out: {tmp_path / 'm.safetensors'}\n"
        f"report: {tmp_path / 'r.json'}\n"
    )
    assert run("merge", "--recipe", recipe) == 0
    flags = "0.5,single=0.25"
    sources = ("--base", models / "base.safetensors", "--distilled", models / "distilled.safetensors")
    aligned = f"{models / 'aligned.safetensors'}:{flags}"
    assert run("merge", *sources, "--align", aligned, "--out", tmp_path / "n.safetensors") == 0
    one, other = load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "n.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "r.json").read_text())["increments"][1]["strength"] == flags


def test_flags_override_a_recipe(models, states, tmp_path):
    recipe = models / "over.yaml"
    recipe.write_text(
        "base: base.safetensors\ndistilled: {path: distilled.safetensors, lambda: 0.5}\nalign: lora.safetensors\n"
        "format: lora\nrank: 4\ndtype: fp16\nreport: never.json\nout: never.safetensors\n"
    )
    out = tmp_path / "m.safetensors"
    changed = ("--align", models / "aligned.safetensors", "--lambda-distilled", 1, "--format", "bfl")
    assert run("merge", "--recipe", recipe, *changed, "--dtype", "bf16", "--no-report", "--out", out) == 0
    assert same(out, tiny.reference(*states))
    assert not list(models.glob("never*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "b", "--distilled", "d"], "Add --out PATH"),
        (["--out", "o", "--base", "b"], "nothing to merge"),
        (["--out", "o", "--align", "a"], "no model to add to"),
        (["--out", "o", "--base", "b", "--lambda-distilled", "1"], "Add --distilled PATH"),
        (["--out", "o", "--distilled", "d:0.5", "--lambda-distilled", "1"], "given twice"),
        (["--out", "o", "--base", "b", "--align", "a:0.5.5"], "'0.5.5' is no strength"),
        (["--out", "o", "--base", "b", "--align", "a:1,dubel=1"], "no group of blocks 'dubel'"),
        (["--out", "o", "--base", "b", "--align", "a", "--no-report", "--plot", "p.png"], "contradict"),
        (["--out", "o", "--base", "b", "--align", "a", "--no-report", "--sign-conflict"], "contradict"),
        (["--out", "o", "--base", "b", "--align", "a", "--rank", "8"], "Add --format lora"),
        (["--out", "o", "--base", "b", "--align", "a", "--plot", "p.jpg"], "Name it p.png"),
        (["--out", "o", "--base", "b", "--align", "a", "--report", "r.safetensors"], "Name it r.json"),
        (["--out", "o.safetensors", "--base", "b", "--align", "a"], "There is no"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run("merge", *arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not told.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--dtype", "fp8"], ["--rank", "0"], ["--warn-shift", "x"], ["--bse", "b"]])
def test_wrong_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        run("merge", *arguments)
    assert caught.value.code == 2


def test_a_report_that_is_there_is_kept_unless_told_and_that_is_known_before_the_merge(models, tmp_path, capsys):
    report = tmp_path / "r.json"
    report.write_text("mine")
    assert merge(models, tmp_path / "m.safetensors", "--report", report) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert merge(models, tmp_path / "m.safetensors", "--report", report, "--overwrite") == 0
    assert json.loads(report.read_text())["version"] == 1


def test_ctrl_c_leaves_no_debris_and_says_so(models, tmp_path, monkeypatch, capsys):
    def press(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(MergeBar, "listen", press)
    out = tmp_path / "m.safetensors"
    out.write_text("before")
    assert merge(models, out, "--overwrite") == 130
    told = capsys.readouterr()
    assert "is as it was before" in told.err
    assert not told.out
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


class Measured:
    """Stands in for what the network's outputs give."""

    def text(self):
        return "linear enough"

    def json(self):
        return {"version": 1}


@pytest.fixture
def asked(monkeypatch):
    """What `clvr linearity` asks for, without running a network."""
    calls = []
    fake = types.ModuleType("clvr.dswm.linearity")
    vars(fake)["linearity"] = lambda recipe, **options: calls.append((recipe, options)) or Measured()
    monkeypatch.setitem(sys.modules, "clvr.dswm.linearity", fake)
    return calls


def test_linearity_takes_the_same_sources_and_its_own_inputs(asked, tmp_path, capsys):
    report = tmp_path / "l.json"
    sources = ("--base", "b", "--distilled", "d", "--lambda-distilled", "0.5", "--align", "a:0.25")
    inputs = ("--prompt", "one", "--prompt", "two", "--seed", 4, "--size", "64x48", "--sigmas", "1,0.5")
    assert run("linearity", *sources, *inputs, "--device", "cpu", "--report", report) == 0
    ((recipe, options),) = asked
    assert recipe.base == Path("b")
    assert (recipe.distilled, recipe.align) == (Source(Path("d"), Strength(0.5)), (Source(Path("a"), Strength(0.25)),))
    assert options == {
        "prompts": ["one", "two"], "seed": 4, "size": (64, 48), "sigmas": (1.0, 0.5), "device": "cpu",
        "dtype": "float32",
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == ["linear enough", str(report)]
    assert json.loads(report.read_text()) == {"version": 1}


def test_linearity_reads_a_merge_s_recipe_and_leaves_its_outputs_alone(asked, tmp_path):
    path = written(tmp_path, "base: b\nalign: a\nout: o\nreport: r.json\nplot: p.png\n")
    assert run("linearity", "--recipe", path, "--inputs", "x.safetensors") == 0
    ((recipe, options),) = asked
    assert (recipe.base, options["inputs"]) == (tmp_path / "b", Path("x.safetensors"))
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    "inputs",
    [[], ["--prompt", "p", "--inputs", "x"], ["--prompt", "p", "--sigmas", "2"], ["--prompt", "p", "--size", "a"]],
)
def test_linearity_needs_one_kind_of_inputs(inputs):
    with pytest.raises(SystemExit) as caught:
        run("linearity", "--base", "b", "--align", "a", *inputs)
    assert caught.value.code == 2


INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from clvr.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_in_the_middle_leaves_nothing(tmp_path):
    weights = tiny.write_bfl(tmp_path / "in" / "base.safetensors", tiny.state(0, 1, 40), "fp32")
    twin = Path(shutil.copy(weights, tmp_path / "in" / "distilled.safetensors"))
    out = tmp_path / "out" / "m.safetensors"
    out.parent.mkdir()
    command = [sys.executable, "-c", INTERRUPTIBLE, "merge", "--base", weights, "--distilled", twin, "--out", out]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not list(out.parent.iterdir()) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()  # else leaving the block would wait for it
    finished = process.returncode == 0
    assert process.returncode in (0, 130), errors
    assert [path.name for path in out.parent.iterdir()] == (["m.safetensors"] if finished else [])
    assert "Traceback" not in errors
    assert finished or f"clvr: stopped; {out} is as it was before" in errors


def test_help_shows_examples_and_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clvr", "merge", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert "clvr merge --recipe merge.yaml" in done.stdout
    assert all(flag in done.stdout for flag in ("--lambda-distilled", "--plot", "--allow-fp8", "single.0-9"))
    loaded = {entry.rsplit("|", 1)[-1].strip() for entry in done.stderr.splitlines()}
    assert not loaded & {"torch", "numpy", "PIL", "tqdm", "yaml", "clvr.dswm.merge"}


def test_progress_tells_tensors_bytes_and_the_time_left():
    told = line(Progress(45, 149, 2_000_000_000, 8_000_000_000, 10.0))
    assert told == "merging: 25%, 45 of 149 tensors, 2.00 of 8.00 GB, 30 s left"


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Screen()])
def test_a_terminal_gets_a_bar_and_a_file_gets_lines(stream):
    with MergeBar(stream) as bar:
        for second in range(0, 31, 5):
            bar.listen(Progress(second, 30, second * 10**9, 30 * 10**9, float(second)))
    told = stream.getvalue()
    assert "30" in told
    if stream.isatty():
        assert "/30 tensors" in told
        assert "30.0GB" in told or "30.0G" in told
    else:
        assert len(told.splitlines()) == 3
        assert "\r" not in told


def written(folder, text):
    path = folder / "r.yaml"
    path.write_text(text, "utf-8")
    return path


def test_paths_in_a_recipe_are_relative_to_it(tmp_path):
    found = yaml.read(written(tmp_path, "base: a/b.safetensors\nalign: [x:0.5, /y]\nout: ../o\nplot: p.png\n"))
    assert found["base"] == tmp_path / "a" / "b.safetensors"
    assert found["align"] == (Source(tmp_path / "x", Strength(0.5)), Source(Path("/y")))
    assert found["out"] == tmp_path / "../o"
    assert found["plot"] == tmp_path / "p.png"


EVERYTHING = """
distilled: {path: 'd:1', lambda: 1, blocks: {double: 0.5, single.0-9: 0}}
align: {path: a, lambda: '.5,final=2'}
dtype: fp16
format: lora
rank: 8
relative_to: distilled
report: false
sign_conflict: false
warn_shift: 0.1
overwrite: true
allow_fp8: true
allow_nonfinite: true
threads: 2
"""


def test_a_recipe_says_it_all(tmp_path):
    found = yaml.read(written(tmp_path, EVERYTHING))
    assert found["distilled"] == Source(tmp_path / "d:1", Strength(1.0, {"double": 0.5, "single.0-9": 0.0}))
    assert found["align"] == (Source(tmp_path / "a", Strength(0.5, {"final": 2.0})),)
    assert (found["form"], found["rank"], found["diagnose"], found["threads"]) == ("lora", 8, False, 2)
    assert "report" not in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bas: x", "no field 'bas'. Did you mean base?"),
        ("zzz: x", "There are base, distilled"),
        ("align: [{path: x, lamda: 1}]", "align: there is no field 'lamda'. Did you mean lambda?"),
        ("align: [{lambda: 1}]", "align has no path"),
        ("align: [x, {path: x, blocks: {dubel: 1}}]", "no group of blocks 'dubel'"),
        ("align: [x, {path: x, lambda: yes}]", "align[1].lambda is True, no number"),
        ("align: {path: x, lambda: .nan}", "no finite number"),
        ("align: {path: x, blocks: [1]}", "blocks is [1]"),
        ("align: {path: x, blocks: {double: a}}", "align.blocks.double is 'a', no number"),
        ("base: 12", "base is 12, no path"),
        ("base: 2024-01-01", "in quotes"),
        ("base:", "base is empty, no path"),
        ("rank: 1.5", "rank is 1.5, no whole number"),
        ("rank: true", "rank is True, no whole number"),
        ("dtype: fp8", "Write bf16, fp16 or fp32"),
        ("overwrite: 1", "Write true or false"),
        ("warn_shift: high", "warn_shift is 'high', no number"),
        ("warn_shift: .nan", "Write 0.03 for 3 %"),
        ("base: x\nalign: a\nalign: b", "names 'align' twice, again in line 3"),
        ("align: {path: x, path: y}", "names 'path' twice"),
        ("- x", "holds no fields"),
        ("", "holds no fields"),
        ("base: [", "no valid YAML"),
        ("base: !!python/object/apply:os.system [echo]", "no valid YAML"),
        ("? [a]\n: 1", "no valid YAML"),
        ("base: 2024-99-99", "no valid YAML"),
        ("base: !!bool x", "no valid YAML"),
        ("base: !!timestamp x", "no valid YAML"),
        ("[" * 800, "no valid YAML"),
    ],
)
def test_a_recipe_s_mistakes_are_named(tmp_path, text, said):
    with pytest.raises(SettingError) as caught:
        yaml.read(written(tmp_path, text))
    assert said in str(caught.value)


def test_what_is_no_recipe_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        yaml.read(tmp_path / "nowhere.yaml")
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingError, match="no text"):
        yaml.read(tmp_path / "weights")
    (tmp_path / "large").write_bytes(b" " * (yaml.LARGEST + 1))
    with pytest.raises(SettingError, match="larger"):
        yaml.read(tmp_path / "large")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("abe:-[]{}&*!|>'\"\n #,?~0.1\t%@"), max_size=40))
@example("&a [*a]")
@example("base: &a {path: *a}")
@example("<<: {a: b}")
def test_any_text_is_a_recipe_or_a_clear_error(tmp_path, text):
    with contextlib.suppress(SettingError):
        assert isinstance(yaml.read(written(tmp_path, text)), dict)


def test_the_guide_s_recipe_is_read(tmp_path):
    guide = (ROOT / "docs" / "merging.md").read_text("utf-8")
    example = guide.split("```yaml\n")[1].split("```")[0]
    found = yaml.read(written(tmp_path, example))
    assert {"base", "distilled", "align", "out", "report", "plot"} <= found.keys()
