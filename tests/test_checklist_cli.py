"""clvr checklist, and clvr generate with an edited one."""

from __future__ import annotations

import pytest

from clvr import cli, journal
from clvr.checklist import GUIDE, parse_text
from clvr.shapes.checks import checklist
from clvr.shapes.language import parse
from clvr.vlm import replies

from .vlm_fixtures import completion, serving

PROMPT = "a red circle and no black shapes"
EXACT = checklist(parse(PROMPT))


def clvr(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_the_checklist_is_printed_or_written_into_a_new_file(tmp_path, capsys):
    assert clvr("checklist", PROMPT) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(GUIDE)
    assert parse_text(printed) == EXACT
    path = tmp_path / "checks.txt"
    assert clvr("checklist", PROMPT, "--out", path) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text("utf-8") == printed
    assert clvr("checklist", PROMPT, "--out", path) == 2
    assert f"clvr: {path} is there already. Delete it, or give another --out." in capsys.readouterr().err


def test_what_was_changed_in_a_vlms_checklist_is_told(capsys):
    doubled = (EXACT[0], *EXACT[:1], *EXACT[1:])
    with serving(completion(replies.dump_checklist(doubled))) as server:
        assert clvr("checklist", PROMPT, "--vlm", server.url) == 0
    told = capsys.readouterr()
    assert parse_text(told.out) == EXACT
    assert "note: 'Is there a red circle?' asks the same as 'Is there a red circle?': they are one check" in told.err


def test_a_run_goes_by_the_checklist_that_it_is_given(tmp_path, capsys):
    path = tmp_path / "checks.txt"
    path.write_text("\ufeff# only this\r\n[color x2] Is there a red circle?\r\n", "utf-8")
    folder = tmp_path / "run"
    assert clvr("generate", PROMPT, "--seed", 1, "--budget", "steps=1", "--checklist", path, "--out", folder) == 0
    checks = journal.read(folder).header.goal.checks
    assert [(c.id, c.kind, c.weight) for c in checks] == [("red-circle", "color", 2)]
    assert "checklist: 1 check, as given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read {path}: No such file or directory. Make one with: clvr checklist PROMPT --out FILE"),
        (b"\xff\xfe\x00", "{path} is not a text in UTF-8. Save it as UTF-8."),
        (b"# nothing\n", "{path} holds no check. Write one a line, or leave --checklist out."),
        (b"Is it red? (if blue)", "{path}: Line 1 of the checklist: no check has the id 'blue'."),
    ],
)
def test_a_checklist_that_cannot_be_used_is_refused_before_anything_is_made(tmp_path, capsys, content, message):
    path = tmp_path / "checks.txt"
    if content is not None:
        path.write_bytes(content)
    assert clvr("generate", PROMPT, "--checklist", path, "--out", tmp_path / "run") == 2
    assert message.format(path=path) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
