"""GRPO of the planner: the loop as an environment, whose tokens are learned, what a run is worth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trl import GRPOTrainer

from clvr.budget import Budget
from clvr.errors import FormatError, MissingFileError, SettingError, WeightsError
from clvr.models import Choice
from clvr.ports import Drawing
from clvr.shapes.controller import ShapesController
from clvr.state import Settings
from clvr.trajectory import Check, CheckVerdict, Decision, Goal, Usage, Verdict
from clvr.vlm import Reply, templates
from clvr.vlm.agents import history
from clvr.vlm.local import LocalClient
from clvr.vlm.rating import VLMRater
from clvr.vlm.replies import dump_decision
from training import planner, trackers
from training import recipe as recipes
from training.director import HIGHEST, ByChecks, ByRubric, mean, reward
from training.environment import Given, Rollout, Studio
from training.planner import (
    PlannerRecipe,
    Reward,
    acting,
    open_dataset,
    open_goals,
    read_goals,
    trainer_of,
    with_checklist,
)
from training.vlm import open_vlm

from .launch_fixtures import launched
from .lesson_fixtures import model

RECIPE = recipes.load(recipes.FOLDER / "planner_tiny.yaml", PlannerRecipe)
RED = Check("red", "Is it red?")
GOAL = Given(Goal("a red picture", 0, (RED,)))
DRAW_RED = Decision("generate", "Nothing is there.", "a red picture")
DRAW_BLUE = Decision("generate", "Nothing is there.", "a blue picture")
STOP = Decision("stop", "It is done.")


class Painter:
    """Draws the colour that the newest instruction names."""

    name = "painter"
    default_size = (64, 64)

    def nfe(self, images):
        return images

    def draw(self, context, size, seeds, on_step=None):
        color = "red" if "red" in context.turns[-1].text else "blue"
        return Drawing(tuple(Image.new("RGB", size, color) for _ in seeds), len(seeds))


class Looker:
    """Knows red when it sees it."""

    name = "looker"

    def judge(self, image, checks, references=()):
        red = image.getpixel((0, 0)) == (255, 0, 0)
        return Verdict(tuple(CheckVerdict(c.id, "pass" if red else "fail") for c in checks))


def studio(generator=None, verifier=None, rounds=2):
    return Studio(generator or Painter(), verifier or Looker(), Settings(Budget(rounds, patience=rounds)), 64)


def begun(given=GOAL, **parts):
    run = Rollout(studio(**parts))
    run.reset(given=given.pack(), seed=0)
    return run


def texts(blocks):
    return "\n".join(b.get("text", "<image>") for b in blocks)


# The environment


def test_what_the_planner_is_shown_is_the_controllers_next_turn():
    run = Rollout(studio(rounds=3))
    opened = run.reset(given=GOAL.pack(), seed=0)
    assert texts(opened) == "\n".join(history(run.state.trajectory, run.state.album)[1].parts)
    seen = run.decide(dump_decision(DRAW_BLUE))
    assert [b["type"] for b in seen] == ["text", "image", "text"]
    assert seen[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert "no: Is it red?" in seen[2]["text"]
    assert seen[2]["text"].endswith("The canvas is <IMG_GEN_0>. Decide the next step.")


def test_a_run_that_the_loop_has_ended_draws_no_more():
    run = begun()
    run.decide(dump_decision(DRAW_RED))
    assert texts(run.decide(dump_decision(DRAW_BLUE))) == "The run has ended: every check of the goal passes."
    assert len(run.state.trajectory.steps) == 1
    run = begun(rounds=1)
    run.decide(dump_decision(DRAW_BLUE))
    assert "the budget of 1 steps is used" in texts(run.decide(dump_decision(DRAW_RED)))


def test_a_decision_that_cannot_be_carried_out_is_answered_with_the_controllers_repair():
    run = begun()
    said = texts(run.decide('{"action": "edit", "instruction": "redder", "references": ["<IMG_GEN_4>"]}'))
    assert said == templates.repair("There is no image 'IMG_GEN_4'. The images are: none yet.")
    assert run.state.trajectory.steps == ()


def test_a_worse_image_is_rolled_back_and_the_best_one_is_scored():
    run = begun(given=Given(Goal("red", 0, (RED, Check("c", "?")))), verifier=Flaky(), rounds=3)
    run.decide(dump_decision(DRAW_RED))
    assert "rolled back" in texts(run.decide(dump_decision(DRAW_BLUE)))
    assert run.state.best.getpixel((0, 0)) == (255, 0, 0)


class Flaky(Looker):
    """Never satisfied."""

    def judge(self, image, checks, references=()):
        verdict = super().judge(image, checks)
        return Verdict(tuple(CheckVerdict("c", "fail") if r.check == "c" else r for r in verdict.results))


def test_what_fails_in_a_tool_ends_the_training_instead_of_being_told_to_the_model():
    class Broken(Painter):
        def draw(self, context, size, seeds, on_step=None):
            raise SettingError("The device is on fire.", "Put it out.")

    run = begun(generator=Broken())
    with pytest.raises(SettingError):
        run.decide(dump_decision(DRAW_RED))
    with pytest.raises(SettingError, match="on fire"):
        Reward(ByChecks(Looker()), RECIPE)([run], log)
    run.reset(given=GOAL.pack(), seed=0)
    assert Reward(ByChecks(Looker()), RECIPE)([run], log) == [0.0]


def log(name, value):
    """Nobody reads it."""


# The reward

SCORES = st.none() | st.floats(0, HIGHEST)


@given(SCORES, st.integers(0, 20), st.floats(0, HIGHEST))
def test_rewards_lie_between_0_and_5_and_a_picture_that_no_one_could_score_has_none(alignment, drawings, cost):
    value = reward(alignment, drawings, cost)
    if not drawings:
        assert value == 0
    elif alignment is None:
        assert value is None
    else:
        assert 0 <= value <= alignment
        assert reward(alignment, drawings, 0) == alignment
        assert reward(alignment, 1, cost) == alignment
        assert reward(alignment, drawings + 1, cost) <= value


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.data())
def test_the_checklists_reward_is_five_times_the_share_that_holds_by_weight(holds, data):
    weights = [data.draw(st.floats(0.1, 10)) for _ in holds]
    checks = tuple(Check(f"c{i}", "?", weight=w) for i, w in enumerate(weights))

    class Fixed:
        name = "fixed"

        def judge(self, image, checks, references=()):
            pairs = zip(checks, holds, strict=True)
            return Verdict(tuple(CheckVerdict(c.id, "pass" if h else "fail") for c, h in pairs))

    value = ByChecks(Fixed()).score(Image.new("RGB", (8, 8)), Goal("?", 0, checks), ())
    held = sum(w for w, h in zip(weights, holds, strict=True) if h)
    assert value == pytest.approx(5 * held / sum(weights))


@given(st.dictionaries(st.sampled_from(["typography", "lighting", "layout"]), SCORES, min_size=1))
def test_the_rubrics_reward_is_the_mean_of_criteria_that_were_all_judged(scores):
    value = mean(scores)
    if None in scores.values():
        assert value is None
    else:
        assert value == pytest.approx(sum(scores.values()) / len(scores))


@dataclass
class Rating:
    """A VLM that gives these replies."""

    replies: list
    name: str = "rater"
    asked: list = field(default_factory=list)

    def chat(self, messages, schema=None, logprobs=False):
        self.asked.append(messages)
        return Reply(self.replies.pop(0), Usage(1, 1, 1))


def rated(*scores):
    names = ("typography", "lighting", "layout")
    return json.dumps({n: {"reason": "", "score": s} for n, s in zip(names, scores, strict=True)})


def test_the_papers_judge_scores_typography_lighting_and_layout_and_is_asked_again_where_it_failed():
    run = begun()
    run.decide(dump_decision(DRAW_BLUE))
    vlm = Rating([rated(5, 9, 4), rated(5, 3, 4)])
    pay = Reward(ByRubric(VLMRater(vlm)), RECIPE)
    assert pay([run], log) == [4.0]
    system, user = vlm.asked[0]
    assert "`typography`" in system.parts[0]
    assert "0 to 5" in system.parts[0]
    assert user.parts[-1] == "Prompt: a red picture"
    assert pay.dropped == 0


def test_a_run_that_no_one_could_score_is_left_out_and_counted():
    runs = [begun(), begun(), begun()]
    for run in runs[:2]:
        run.decide(dump_decision(DRAW_RED))

    class Blind:
        asked = 0

        def score(self, image, goal, references):
            Blind.asked += 1
            return None

    told = {}
    pay = Reward(Blind(), RECIPE)
    assert pay(runs, told.__setitem__) == [None, None, 0.0]
    assert Blind.asked == 2 * (1 + RECIPE.retries)
    assert told == {"drawings": pytest.approx(2 / 3), "dropped": 2}


# Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model(tmp_path_factory.mktemp("vlm") / "tiny")


class Scripted(GRPOTrainer):
    """Runs whose planner says what it is told: a list a run, the runs of a group in turn. A real answer where the
    script ends."""

    scripts = ()
    rolled = None

    def _generate(self, prompts):
        self._said = [list(script) for script in self.scripts]
        self.rolled = super()._generate(prompts)
        return self.rolled

    def _generate_single_turn(self, prompt_ids, *args, **options):
        left = [said for said in self._said if said]
        if len(left) != len(prompt_ids):
            return super()._generate_single_turn(prompt_ids, *args, **options)
        ends = self._tokenizer.eos_token
        return [self._tokenizer(said.pop(0) + ends)["input_ids"] for said in left], None


def scripted(monkeypatch, folder, run, *scripts, goals=(GOAL,), **changes):
    monkeypatch.setattr(planner, "GRPOTrainer", Scripted)
    recipe = recipes.parse({**recipes.plain(RECIPE), **changes}, PlannerRecipe)
    data = open_dataset(goals, 0)
    trainer = trainer_of(recipe, data, folder, studio(rounds=recipe.rounds), ByChecks(Looker()), run)
    trainer.scripts = [[dump_decision(d) if isinstance(d, Decision) else d for d in s] for s in scripts]
    return trainer


@pytest.fixture
def reference(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    return Given(Goal("a red picture like this", 1, (RED,)), (str(tmp_path / "white.png"),))


def test_tokens_are_those_that_the_client_sends_and_only_the_planners_own_are_learned(
    monkeypatch, folder, tmp_path, reference
):
    edit = Decision("edit", "It is blue.", "paint it red", ("IMG_GEN_0", "IMG_REF_0"))
    says = ([DRAW_BLUE, edit, STOP], [DRAW_RED, STOP])
    trainer = scripted(monkeypatch, folder, tmp_path / "run", *says, goals=(reference,), steps=1)
    trainer.train()
    prompts, completions, masks, *_ = trainer.rolled
    qwen = LocalClient.load(folder).qwen
    for number, decisions in enumerate(says):
        state = trainer.environments[number].state
        whole = prompts[number] + completions[number]
        mask = [0] * len(prompts[number]) + masks[number]
        expected = [0] * len(whole)
        for index, decision in enumerate(decisions):
            past = before_step(state.trajectory, index)
            sent = qwen.prompt(history(past, state.album), 64).ids.tolist()
            reply = [*qwen.tokenizer(dump_decision(decision))["input_ids"], qwen.tokenizer.eos_token_id]
            assert whole[: len(sent)] == sent
            assert whole[len(sent) : len(sent) + len(reply)] == reply
            expected[len(sent) : len(sent) + len(reply)] = [1] * len(reply)
        assert mask == expected


def before_step(trajectory, count):
    return type(trajectory)(trajectory.goal, trajectory.steps[:count], trajectory.seed)


def test_one_update_makes_the_better_decision_likelier_than_the_worse(monkeypatch, folder, tmp_path):
    trainer = scripted(monkeypatch, folder, tmp_path / "run", [DRAW_RED, STOP], [DRAW_BLUE, STOP], steps=1)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    before = margin(trainer, folder)
    trainer.train()
    assert margin(trainer, folder) > before
    changed = [n for n, p in trainer.model.named_parameters() if not torch.equal(weights[n], p)]
    assert len(changed) > len(weights) / 2
    entry = trainer.state.log_history[0]
    assert (entry["reward"], entry["drawings"], entry["dropped"], entry["kl"]) == (2.5, 1, 0, 0)


def margin(trainer, folder):
    """How much likelier drawing red is than drawing blue, in nats."""
    processor = open_vlm(folder, "fp32", None)[1]
    talk = history(begun().state.trajectory, begun().state.album)
    opened = processor.apply_chat_template([{"role": m.role, "content": "\n".join(m.parts)} for m in talk],
                                           add_generation_prompt=True, tokenize=False)  # fmt: skip
    return _logp(trainer, processor, opened, DRAW_RED) - _logp(trainer, processor, opened, DRAW_BLUE)


def _logp(trainer, processor, opened, decision):
    sent = processor.tokenizer(opened)["input_ids"]
    reply = processor.tokenizer(dump_decision(decision))["input_ids"]
    with torch.no_grad():
        logits = trainer.model(input_ids=torch.tensor([sent + reply])).logits[0, len(sent) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None]).sum().item()


def test_the_untaught_planner_writes_no_image_tokens_after_an_image_and_a_group_without_a_difference_learns_nothing(
    monkeypatch, folder, tmp_path
):
    trainer = scripted(monkeypatch, folder, tmp_path / "run", [DRAW_RED], [DRAW_RED], steps=1, tokens=260)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    _, completions, masks, *_ = trainer.rolled
    pad = trainer.model.config.image_token_id
    for ids, mask in zip(completions, masks, strict=True):
        assert mask[-1] == 1
        assert pad in ids
        assert pad not in [token for token, own in zip(ids, mask, strict=True) if own]
    assert all(torch.equal(weights[n], p) for n, p in trainer.model.named_parameters())


def test_images_cannot_be_spoken_even_where_they_are_likeliest(monkeypatch, folder, tmp_path):
    trainer = scripted(monkeypatch, folder, tmp_path / "run", [], steps=1)
    config = trainer.model.config
    silent = trainer.generation_config.suppress_tokens
    assert {config.image_token_id, config.video_token_id, config.vision_start_token_id} <= set(silent)
    assert trainer.args.loss_type == "grpo"
    assert trainer.beta > 0


def test_a_reply_that_decides_nothing_ends_its_run(monkeypatch, folder, tmp_path):
    trainer = scripted(monkeypatch, folder, tmp_path / "run", ["I am not sure."], [DRAW_RED, STOP], steps=1)
    trainer.train()
    assert [len(run.state.trajectory.steps) for run in trainer.environments] == [0, 1]
    assert trainer.state.log_history[0]["reward"] == 2.5


def test_a_planner_with_another_chat_template_is_refused(folder):
    _, processor = open_vlm(folder, "fp32", None)
    processor.chat_template = processor.chat_template.replace("<|im_end|>", "<|im_end|> ")
    with pytest.raises(WeightsError, match="chat template"):
        acting(processor)


# Goals and recipes


def test_goals_are_prompts_or_json_and_get_a_checklist_where_they_have_none(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    check = {"id": "red", "question": "Is it red?"}
    line = json.dumps({"prompt": "make it red", "references": ["a.png"], "checks": [check]})
    (tmp_path / "goals.txt").write_text(f"a red circle\n\n{line}\n")
    plain, full = read_goals(tmp_path / "goals.txt")
    assert full == Given(Goal("make it red", 1, (RED,)), (str(tmp_path / "a.png"),))
    assert Given.unpack(full.pack()) == full
    made = with_checklist(plain, ShapesController())
    assert "Is there a red circle?" in [c.question for c in made.goal.checks]
    assert with_checklist(full, ShapesController()) == full


@pytest.mark.parametrize(
    ("line", "words"),
    [('{"prompt": 3}', "prompt should be"), ('{"text": "x"}', "not text"), ("{}", "not nothing"), ("{x", "no JSON")],
)
def test_what_is_wrong_in_a_file_of_goals_is_named_by_line(tmp_path, line, words):
    (tmp_path / "goals.txt").write_text(f"a red circle\n{line}\n")
    with pytest.raises(FormatError, match=rf"goals.txt line 2: .*{words}"):
        list(read_goals(tmp_path / "goals.txt"))
    with pytest.raises(MissingFileError):
        list(read_goals(tmp_path / "none.txt"))
    with pytest.raises(FormatError, match="no goal"):
        open_dataset([], 0)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("group: 1", SettingError, "nothing to compare"),
        ("cost: 9", SettingError, "out of its range"),
        ("reward: taste", FormatError, "one of rubric, checks"),
        ("loss: dapo", FormatError, "unknown fields: loss"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path, text, error, words):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(error, match=words):
        recipes.load(tmp_path / "r.yaml", PlannerRecipe)


def test_groups_that_do_not_fill_an_update_are_refused(folder, tmp_path):
    recipe = recipes.parse({**recipes.plain(RECIPE), "group": 3}, PlannerRecipe)
    with pytest.raises(SettingError, match="no multiple of the group of 3"):
        trainer_of(recipe, open_dataset([GOAL], 0), folder, studio(), ByChecks(Looker()), tmp_path)


def test_the_large_recipe_is_read_and_the_built_in_judge_cannot_rate_by_rubric():
    large = recipes.load(recipes.FOLDER / "planner_8b.yaml", PlannerRecipe)
    assert large.loop().budget.steps == 6
    with pytest.raises(SettingError, match="cannot rate"):
        planner.open_judge(large, Choice("builtin", "builtin"))


def test_the_command_trains_in_the_built_in_world_and_publishes_what_clvr_opens(folder, tmp_path, capsys):
    (tmp_path / "goals.txt").write_text("a red circle\n")
    settings = {**recipes.plain(RECIPE), "steps": 1, "tokens": 8, "checkpoint_every": 5}
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    options = {"recipe": "r.yaml", "goals": "goals.txt", "out": "run"}
    flags = [x for name, value in options.items() for x in (f"--{name}", str(tmp_path / value))]
    command = [*flags, "--model", str(folder)]
    assert planner.main(command) == 0
    assert f"transformers:{tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    opened = LocalClient.load(tmp_path / "run" / "model")
    assert opened.qwen.processor.chat_template == LocalClient.load(folder).qwen.processor.chat_template
    assert "response_template" not in (tmp_path / "run" / "model" / "tokenizer_config.json").read_text()
    assert (tmp_path / "run" / "log.csv").read_text().startswith("step,")
    assert planner.main(command) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_one_planner_and_write_one_run(folder, tmp_path):
    (tmp_path / "goals.txt").write_text("a red circle\na blue square\n")
    settings = {**recipes.plain(RECIPE), "steps": 2, "tokens": 8, "checkpoint_every": 5}
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    options = {"recipe": tmp_path / "r.yaml", "goals": tmp_path / "goals.txt", "out": tmp_path / "run", "model": folder}
    flags = [str(x) for name, value in options.items() for x in (f"--{name}", value)]
    assert launched(2, "training.planner", *flags) == [0, 0]
    assert [row["step"] for row in trackers.read(tmp_path / "run" / "log.csv")][:2] == ["1", "2"]
    assert LocalClient.load(tmp_path / "run" / "model")


def test_a_run_makes_its_checklists_once_and_goes_on_with_its_own_goals_only(tmp_path):
    (tmp_path / "goals.txt").write_text("a red circle\n")
    made = open_goals(tmp_path / "goals.txt", ShapesController(), tmp_path)
    assert made[0].goal.checks
    assert open_goals(tmp_path / "goals.txt", None, tmp_path) == made
    (tmp_path / "goals.txt").write_text("a blue circle\n")
    with pytest.raises(SettingError, match="other goals"):
        open_goals(tmp_path / "goals.txt", ShapesController(), tmp_path)
