"""The laboratory of the policies: its prompts, its rows, its book of results."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import search
from benchmarks.search_tables import Result, write
from clvr.policies import POLICIES
from clvr.shapes.checks import checklist
from clvr.shapes.language import parse
from clvr.shapes.sampler import held_back
from training import book

RUN = ["search", "--prompts", "1", "--steps", "1"]


@pytest.fixture(scope="module", autouse=True)
def own_policies() -> Iterator[None]:
    """What the laboratory registers is gone afterwards."""
    with patch.dict(POLICIES):
        yield


def test_prompts_are_held_back_distinct_and_in_tiers_of_equal_size() -> None:
    made = search.tasks(40, 5)
    assert len({task.text for task in made}) == 40
    assert all(held_back(task.text) for task in made)
    assert all(task.checks == checklist(parse(task.text)) for task in made)
    assert sorted({task.tier for task in made}) == [1, 2, 3, 4]
    assert min(task.complexity for task in made if task.tier == 4) >= max(
        task.complexity for task in made if task.tier == 1
    )
    assert search.tasks(40, 5) == made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, at one denoising step and one prompt a tier."""
    folder = tmp_path_factory.mktemp("search")
    run(folder)
    return folder


def results(folder: Path) -> list[Result]:
    return [row for path in (folder / "work").glob("*.jsonl") for row in book.read(path, Result)]


def run(folder: Path, *more: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", [*RUN, "--work", str(folder / "work"), "--out", str(folder / "out"), *more])
        search.main()


def test_every_row_keeps_to_its_budget(folder: Path) -> None:
    rows = results(folder)
    methods = {method.name: method for method in search.methods()}
    assert {row.method for row in rows} == set(methods)
    for row in rows:
        method = methods[row.method]
        assert row.images <= method.images
        assert row.nfe <= 2 * method.images * method.longer
        assert row.rounds <= method.rounds


def test_the_tables_have_every_row_and_the_plots_are_there(folder: Path) -> None:
    text = (folder / "out" / "search.md").read_text()
    for method in search.methods():
        if method.group in ("methods", "parts"):
            assert f"| {method.name} |" in text
    assert {path.name for path in (folder / "out").glob("*.png")} == {
        "search_tiers.png",
        "search_budget.png",
        "search_robust.png",
    }


def test_a_second_run_goes_on_where_the_first_one_was_cut(folder: Path) -> None:
    path = sorted((folder / "work").glob("*.jsonl"))[-1]
    whole, before = path.read_text(), book.read(path, Result)
    path.write_text(whole[: len(whole) - 40])
    assert len(book.read(path, Result)) == len(before) - 1
    run(folder)
    assert {row.task: row.passed for row in book.read(path, Result)} == {row.task: row.passed for row in before}


def test_parts_share_the_work(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    last = sorted((copy / "work").glob("*.jsonl"))[-1]
    whole = len(results(copy))
    lost = len(book.read(last, Result))
    last.unlink()
    run(copy, "--part", "1/2")
    assert whole - lost < len(results(copy)) < whole
    run(copy)
    assert len(results(copy)) == whole


def test_auto_is_compared_with_others_on_the_same_prompts(tmp_path: Path) -> None:
    def row(method: str, task: int, passed: bool) -> Result:
        return Result(method, task, 1, 10.0 + task, passed, float(passed), False, 0.0, 4, 4, 48, 0, "")

    rows = [row("auto", n, True) for n in range(4, 40)] + [row("best of 8", n, n < 10) for n in range(40)]
    write(rows, [("best of 8", "methods"), ("auto", "methods")], tmp_path, "a test")
    (line,) = [line for line in (tmp_path / "search.md").read_text().split("\n") if line.startswith("| best of 8 | +")]
    assert [cell.split()[0] for cell in line.split(" | ")[1:]] == ["+0.000", "+1.000", "+1.000", "+1.000"]
