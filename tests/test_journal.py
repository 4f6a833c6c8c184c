from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clvr import journal, loop
from clvr.budget import Budget
from clvr.errors import JournalError, MissingFileError, RunFolderError, RunLockedError
from clvr.images import load_image
from clvr.journal import Header, Journal
from clvr.trajectory import Trajectory

from . import engine_fixtures as world

ROOT = Path(__file__).parent.parent
KILLS = 20


def full_run(folder, seed=7):
    """The kill test's run without a kill, in this process."""
    ports, settings, goal, reference = world.kill_test_parts()
    ports.generator.pause = 0
    with Journal.create(folder) as log:
        state = loop.start(goal, [reference], ports.controller, settings, seed)
        log.begin(Header.of(state, world.SIZE), [reference])
        return loop.proceed(state, ports, log.listen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, full_run(folder)


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run that a test may damage."""
    import shutil

    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def without_seconds(value):
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_read_back_is_the_run(finished):
    folder, state = finished
    record = journal.read(folder)
    assert record.trajectory == state.trajectory
    assert record.trajectory == Trajectory.from_dict(json.loads((folder / "trajectory.json").read_text()))
    assert record.header.budget == state.settings.budget
    assert not record.warnings


def test_images_read_back_equal_those_that_were_judged(finished):
    folder, state = finished
    album = journal.read(folder).album()
    assert set(album) == set(state.album)
    for label, image in album.items():
        assert image.mode == "RGB"
        assert image.tobytes() == state.album[label].tobytes()


def test_every_candidate_and_reference_is_on_disk(finished):
    folder, state = finished
    assert load_image(folder / "references/0.png").tobytes() == state.album["IMG_REF_0"].tobytes()
    for step in state.trajectory.steps:
        for k in range(len(step.candidates)):
            assert (folder / f"steps/{step.index:02d}/{k}.png").is_file()
    assert set(journal.read(folder).pictures()) >= {"IMG_GEN_0", "IMG_GEN_0/0", "IMG_GEN_0/1", "IMG_REF_0"}


def test_a_run_killed_at_random_points_and_resumed_is_the_uninterrupted_run(finished, tmp_path):
    """Real child processes, killed with SIGKILL after a random time, again and again until one gets through."""
    whole, moments = finished[1], random.Random(1)
    reached = []
    for attempt in range(KILLS):
        folder = tmp_path / f"run{attempt}"
        while (code := _live(folder, moments if len(reached) < KILLS else None)) != 0:
            assert code == -signal.SIGKILL
            reached.append(len(journal.read(folder).trajectory.steps) if _begun(folder) else -1)
        record = journal.read(folder)
        assert without_seconds(record.trajectory.to_dict()) == without_seconds(whole.trajectory.to_dict())
        for label, image in record.album().items():
            assert image.tobytes() == whole.album[label].tobytes()
        if len(reached) >= KILLS:
            break
    assert len(set(reached)) > 4, f"the kills all came at the same point: {reached}"


def _live(folder, moments):
    """Exit code of a child that runs or resumes, and is killed at some moment after its imports are done. The
    child's own progress is the clock, so that a busy machine does not shift the kills."""
    command = [sys.executable, "-m", "tests.engine_fixtures", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if moments:
            for _ in range(moments.randint(1, 60)):
                child.stdout.readline()
            time.sleep(moments.uniform(0, 0.01))
            child.kill()
        child.communicate()
        return child.returncode


def _begun(folder):
    return (folder / "journal.jsonl").exists()


@pytest.mark.parametrize("cut", [1, 2, 40, 150])
def test_a_last_line_that_was_cut_off_is_dropped_with_a_warning(copy, finished, cut):
    path = copy / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    log, record = Journal.reopen(copy)
    log.close()
    assert "dropped" in record.warnings[0]
    assert record.trajectory.stop_reason == ""
    assert record.trajectory.steps == finished[1].trajectory.steps
    assert not journal.read(copy).warnings


def test_every_cut_leaves_a_prefix_of_the_run(copy, finished):
    path, whole = copy / "journal.jsonl", finished[1].trajectory
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    for length in range(header, len(data), 997):
        path.write_bytes(data[:length])
        steps = journal.read(copy).trajectory.steps
        assert steps == whole.steps[: len(steps)]


@pytest.mark.parametrize("line", range(1, 9))
def test_damage_before_the_last_line_names_the_line_and_leaves_the_files_alone(copy, line):
    path = copy / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = lines[line - 1].replace(b"grey", b"gray", 1)
    path.write_bytes(b"\n".join(lines))
    before = content(copy)
    with pytest.raises(JournalError, match=f"line {line}\\b.*(backup)"):
        Journal.reopen(copy)
    assert content(copy) == before


def test_a_missing_line_is_damage(copy):
    path = copy / "journal.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:2] + lines[3:]))
    with pytest.raises(JournalError, match="line 3"):
        journal.read(copy)


def test_an_empty_journal_is_told(copy):
    (copy / "journal.jsonl").write_bytes(b"")
    with pytest.raises(JournalError, match="empty"):
        journal.read(copy)


def test_a_changed_or_missing_image_is_told_by_name(copy):
    path = copy / "steps/03/0.png"
    other = copy / "steps/03/1.png"
    chosen = journal.read(copy).trajectory.steps[3].chosen
    victim = (path, other)[chosen]
    victim.write_bytes(b"no image")
    with pytest.raises(JournalError, match=f"03/{chosen}.png"):
        journal.read(copy).album()
    victim.unlink()
    with pytest.raises(JournalError, match=f"03/{chosen}.png"):
        journal.read(copy).album()
    assert "IMG_GEN_3" not in journal.read(copy).pictures()


def test_a_folder_without_a_run_says_how_to_start_one(tmp_path):
    with pytest.raises(MissingFileError, match="clvr generate"):
        Journal.reopen(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_new_run_into_a_folder_that_holds_one_names_the_remedy(copy):
    before = content(copy)
    with pytest.raises(RunFolderError, match="clvr resume"):
        Journal.create(copy)
    assert content(copy) == before


def test_two_writers_exclude_each_other(copy, tmp_path):
    first, _ = Journal.reopen(copy)
    with pytest.raises(RunLockedError):
        Journal.reopen(copy)
    first.close()
    Journal.reopen(copy)[0].close()
    with Journal.create(tmp_path / "new"), pytest.raises(RunLockedError):
        Journal.create(tmp_path / "new")


def test_a_reserved_folder_that_got_no_run_is_gone_again(tmp_path):
    with Journal.create(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_folders_place_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Cannot write"):
        Journal.create(tmp_path / "file")


@pytest.fixture
def ordinary_user():
    """Root may write into read-only folders, so it steps down for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_read_only_folder_is_told(tmp_path, request):
    tmp_path.chmod(0o500)
    request.getfixturevalue("ordinary_user")
    with pytest.raises(RunFolderError, match="Cannot write"):
        Journal.create(tmp_path / "run")


def test_a_disk_that_fills_up_loses_nothing_made_before(tmp_path, monkeypatch):
    """os.fsync starts to fail as on a full disk in the middle of the run."""
    calls, sync = iter(range(10_000)), os.fsync

    def full(descriptor):
        if next(calls) > 40:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        full_run(tmp_path / "run")
    monkeypatch.undo()
    log, record = Journal.reopen(tmp_path / "run")
    ports, settings, *_ = world.kill_test_parts()
    assert 0 < len(record.trajectory.steps) < 8
    with log:
        resumed = loop.proceed(loop.State(record.trajectory, record.album(), settings), ports, log.listen)
    assert not list((tmp_path / "run").rglob("*.partial"))
    again = full_run(tmp_path / "again").trajectory
    assert without_seconds(resumed.trajectory.to_dict()) == without_seconds(again.to_dict())


def test_a_finished_run_goes_on_with_a_larger_budget(copy):
    log, record = Journal.reopen(copy)
    log.close()
    assert "8 steps" in record.trajectory.stop_reason
    log, record = Journal.reopen(copy, Budget(steps=9))
    log.close()
    assert record.trajectory.stop_reason == ""
    assert journal.read(copy).header.budget.steps == 9


def test_a_run_saved_from_memory_reads_back(finished, tmp_path):
    state = finished[1]
    journal.save(tmp_path / "saved", Header.of(state, world.SIZE), state.trajectory, state.album)
    record = journal.read(tmp_path / "saved")
    assert record.trajectory == state.trajectory
    assert set(record.album()) == set(state.album)


def test_the_header_keeps_names_and_addresses(tmp_path):
    _, _, goal, _ = world.kill_test_parts()
    header = Header(goal, 3, world.SIZE, models={"controller": "x"}, options={"vlm": "http://h/v1"})
    with Journal.create(tmp_path / "run") as log:
        log.begin(header)
    assert journal.read(tmp_path / "run").header == header


def test_who_plays_from_here_on_is_kept_beside_what_was_asked(finished, copy):
    before = journal.read(copy)
    log, _ = Journal.reopen(copy)
    with log:
        log.recast({"generator": "another"}, {"model": "somewhere"})
        assert log.lines == before.lines + 1
    after = journal.read(copy)
    assert (after.header.models, after.header.options) == ({"generator": "another"}, {"model": "somewhere"})
    assert (after.trajectory, after.lines) == (before.trajectory, log.lines)
