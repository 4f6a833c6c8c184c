"""The built-in world's language, read: prompts to specs, instructions to edits. Its grammar: docs/shapes.md.

Reads whatever `phrases` and `edits` write, and the common other ways of saying it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ..errors import GrammarError
from .edits import Anchor, Edit
from .phrases import NUMBERS, listed, noun_words, plural, the
from .scene import CAPACITY, COLORS, GRID, MAX_COUNT, SHAPES, SIZES, Cell, Group, Noun, Relation, Spec

EXAMPLE = "a red circle and two green triangles above the circle"
EDIT_EXAMPLE = "add a blue square left of the red circle"

_SHAPE_WORDS: dict[str, str | None] = {
    **{s: s for s in SHAPES},
    **{plural(s): s for s in SHAPES},
    **dict.fromkeys(("shape", "shapes", "object", "objects")),
}
_SIZE_WORDS = {**{s: s for s in SIZES}, "big": "large", "little": "small", "tiny": "small"}
_COUNT_WORDS = {
    "a": 1,
    "an": 1,
    **{w: n for n, w in enumerate(NUMBERS) if n},
    **{str(n): n for n in range(1, MAX_COUNT + 1)},
}
_TOO_MANY = {"seven", "eight", "nine", "ten", "eleven", "twelve", "many", "several", "some", "few", "dozen"}
_RELATION_PHRASES: dict[str, str] = {
    **{
        f"{start}{side} {end}": f"{side} of"
        for side in ("left", "right")
        for start in ("", "to the ", "on the ", "at the ")
        for end in ("of", "side of")
    },
    **dict.fromkeys(("above", "over", "atop", "on top of"), "above"),
    **dict.fromkeys(("below", "under", "beneath", "underneath"), "below"),
}
_PREFIXES = (
    ("draw",),
    *((*start, noun, "of") for start in ((), ("a",), ("an",), ("the",)) for noun in ("photo", "picture", "image")),
)
_NO_WORDS = (("without", "any"), ("without", "a"), ("without", "an"), ("without",), ("no",), ("zero",))
_VERBS = {
    **dict.fromkeys(("add", "put", "place", "insert"), "add"),
    **dict.fromkeys(("remove", "delete", "erase"), "remove"),
    **dict.fromkeys(("recolor", "recolour", "color", "colour", "paint"), "recolor"),
    **dict.fromkeys(("replace", "swap"), "replace"),
    **dict.fromkeys(("move", "shift"), "move"),
    **dict.fromkeys(("make", "turn", "change", "resize"), "change"),
}
_SMALL_WORDS = (
    "photo picture image of the and with no without any is are that which in at row column to on top left"
    " right side above over atop below under beneath underneath for by into colored coloured sized draw zero"
)
_WORDS = {
    *_SHAPE_WORDS,
    *_SIZE_WORDS,
    *_COUNT_WORDS,
    *COLORS,
    *_VERBS,
    *_SMALL_WORDS.split(),
}
_TELLING = sorted({*_SHAPE_WORDS, *_SIZE_WORDS, *COLORS, *_VERBS, "left", "right", "above", "below"})
"""What a misspelt word is compared with."""
_MEANT = {
    **dict.fromkeys(("ball", "disc", "disk", "dot", "sphere", "ring", "oval", "ellipse"), "circle"),
    **dict.fromkeys(("box", "cube", "rectangle", "block", "diamond"), "square"),
    **dict.fromkeys(("pyramid", "cone", "arrow"), "triangle"),
    **dict.fromkeys(("plus", "x", "star"), "cross"),
    **dict.fromkeys(("orange", "pink", "crimson"), "red"),
    **dict.fromkeys(("violet", "magenta", "lilac"), "purple"),
    **dict.fromkeys(("cyan", "teal", "navy", "turquoise"), "blue"),
    **dict.fromkeys(("gray", "grey", "dark", "brown"), "black"),
    **dict.fromkeys(("huge", "giant"), "large"),
    **dict.fromkeys(("beside", "near", "by", "next"), "left of"),
}


def parse(prompt: str) -> Spec:
    """What a prompt asks for. Raises GrammarError for anything outside the grammar."""
    return _Prompt(prompt, EXAMPLE).read()


def parse_edit(text: str) -> Edit:
    """The edit that an instruction asks for. Raises GrammarError for anything outside the grammar."""
    return _Instruction(text, EDIT_EXAMPLE).read()


def read_noun(text: str) -> Noun:
    """A description without article or count: 'large red circle', 'black shapes'. Raises GrammarError."""
    reader = _Reader(text, EXAMPLE)
    noun = reader.noun()
    reader.end()
    return noun


def read_count(word: str) -> int | None:
    """A count from one up, as digits or a word."""
    return int(word) if word.isdigit() else _COUNT_WORDS.get(word)


class _Reader:
    """Tokens and a position. Methods named after a part of speech take it or raise GrammarError."""

    def __init__(self, text: str, example: str) -> None:
        body = text.lower().replace("-", " ").replace(";", ",").strip().rstrip(".!")
        self.words: list[str] = re.findall(r"[a-z]+|\d+|[^\sa-z\d]", body)
        self.at = 0
        self.example = example
        for word in self.words:
            if word not in _WORDS and word not in _TOO_MANY and word != "," and not word.isdigit():
                self.fail(f"The built-in world does not know '{word}'.", _nearest(word))
        if not self.words:
            self.fail("The prompt is empty.")

    @property
    def word(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def fail(self, thing: str, hint: str = "") -> NoReturn:
        remedy = (
            f"Write like '{self.example}'. Free prompts need FLUX.2 [klein] and a VLM: in ComfyUI the template"
            " 'clvr_klein_native' or 'clvr_klein_server', on the command line --model and --vlm."
        )
        raise GrammarError(thing, f"{hint} {remedy}".strip())

    def lost(self, wanted: str) -> NoReturn:
        where = f"'{self.word}'" if self.word else "the end"
        after = f" after '{' '.join(self.words[max(0, self.at - 3) : self.at])}'" if self.at else ""
        self.fail(f"Expected {wanted}{after}, found {where}.")

    def take(self, *words: str) -> bool:
        """Step over these words if they come next."""
        if tuple(self.words[self.at : self.at + len(words)]) != words:
            return False
        self.at += len(words)
        return True

    def take_any(self, options: Iterable[Sequence[str]]) -> bool:
        return any(self.take(*o) for o in options)

    def end(self) -> None:
        if self.word:
            self.lost("the end")

    def noun(self) -> Noun:
        """Adjectives in any order, then a shape."""
        parts: dict[str, str] = {}
        while self.word not in _SHAPE_WORDS:
            self.adjective(parts)
        shape = _SHAPE_WORDS[self.word]
        self.at += 1
        return Noun(shape, parts.get("color"), parts.get("size"))

    def adjective(self, parts: dict[str, str]) -> None:
        kind, value = ("color", self.word) if self.word in COLORS else ("size", _SIZE_WORDS.get(self.word, ""))
        if not value:
            self.lost("a shape" if parts else "a size, a color or a shape")
        if parts.get(kind, value) != value:
            self.fail(f"'{parts[kind]} {value}' names two {kind}s for one object.")
        parts[kind] = value
        self.at += 1
        self.take_any((("colored",), ("coloured",), ("sized",)))

    def relation(self) -> str | None:
        return next((kind for words, kind in _RELATION_PHRASES.items() if self.take(*words.split())), None)

    def place(self, *prepositions: str) -> Cell | None:
        """'in row two column three', counted from one at the top left."""
        if self.word not in prepositions or self.words[self.at + 1 : self.at + 2] != ["row"]:
            return None
        self.at += 2
        row = self.index("row")
        self.take_any(((",",), ("and",)))
        if not self.take("column"):
            self.lost("'column'")
        return row, self.index("column")

    def index(self, kind: str) -> int:
        number = read_count(self.word)
        if number is None or not 1 <= number <= GRID:
            self.lost(f"a {kind} from 1 to {GRID}")
        self.at += 1
        return number - 1

    def the_noun(self) -> Noun:
        if not self.take("the"):
            self.lost("'the'")
        return self.noun()


class _Prompt(_Reader):
    def __init__(self, text: str, example: str) -> None:
        super().__init__(text, example)
        self.groups: list[Group] = []
        self.relations: list[Relation] = []
        self.absent: list[Noun] = []

    def read(self) -> Spec:
        self.take_any(_PREFIXES)
        self.clause()
        while self.word:
            if not self.separator():
                self.lost("'and', a comma or a relation")
            self.clause()
        self.check()
        return Spec(tuple(self.groups), tuple(self.relations), tuple(self.absent))

    def separator(self) -> bool:
        if self.word == "without":
            return True
        comma = self.take(",")
        return self.take_any((("and", "with"), ("and",), ("with",))) or comma or self.word == "without"

    def clause(self) -> None:
        if self.take_any(_NO_WORDS):
            self.absent.append(self.noun())
            return
        alone = self.word == "the"
        left = self.phrase()
        kind = self.link()
        if alone and kind is None:
            self.lost("a relation such as 'above' or 'left of'")
        while kind is not None:
            right = self.phrase(left)
            if left == right:
                self.fail(f"{the(self.groups[left].noun).capitalize()} cannot be {kind} itself.")
            self.relations.append(Relation(left, kind, right))
            left, kind = right, self.link()

    def link(self) -> str | None:
        start = self.at
        self.take_any((("that",), ("which",)))
        self.take_any((("is",), ("are",)))
        kind = self.relation()
        if kind is None and self.at > start:
            self.lost("a relation such as 'above' or 'left of'")
        return kind

    def phrase(self, left: int = -1) -> int:
        """Index of the group that is introduced or meant, by preference another than `left`."""
        if self.word == "the":
            return self.reference(left)
        count = self.count()
        noun = self.noun()
        cell = self.place("in", "at")
        if cell is not None and count > 1:
            self.fail(f"{count} objects cannot all be in one place.")
        self.groups.append(Group(noun, count, cell))
        return len(self.groups) - 1

    def count(self) -> int:
        number = _COUNT_WORDS.get(self.word)
        if number is not None:
            self.at += 1
            return number
        if self.word in _TOO_MANY or self.word.isdigit():
            self.fail(f"The built-in world counts from one to six, not '{self.word}'.")
        if self.word in _SHAPE_WORDS or self.word in COLORS or self.word in _SIZE_WORDS:
            self.fail(f"How many? '{self.word}' needs 'a' or a count from one to six before it.")
        self.lost("'a' or a count from one to six")

    def reference(self, left: int) -> int:
        self.take("the")
        count = None if self.word in ("a", "an") else _COUNT_WORDS.get(self.word)
        self.at += count is not None
        noun = self.noun()
        many = self.words[self.at - 1].endswith("s") and self.words[self.at - 1] != "cross"
        cell = self.place("in", "at")
        fitting = [
            i
            for i, g in enumerate(self.groups)
            if noun.covers(g.noun) and cell in (None, g.cell) and count in (None, g.count)
        ]
        meant = self.meant(fitting, noun, many, left)
        if meant is not None:
            return meant
        what = the(noun, 2 if many else 1)
        if not fitting:
            self.fail(f"Nothing before '{what}' is one.", f"Mention it first, as 'a {noun_words(noun)}'.")
        options = listed([f"'{the(self.groups[i].noun, self.groups[i].count)}'" for i in fitting])
        self.fail(f"'{what}' could mean {options}.", "Say more of its color, size or shape.")

    def meant(self, fitting: Sequence[int], noun: Noun, many: bool, left: int) -> int | None:
        """The one group among those that fit: by number, by the very same words, by being another one."""
        number = [i for i in fitting if (self.groups[i].count > 1) == many]
        exact = [i for i in fitting if self.groups[i].noun == noun]
        both = [i for i in number if i in exact]
        for options in (fitting, number, exact, both, [i for i in both if i != left]):
            if len(options) == 1:
                return options[0]
        return None

    def check(self) -> None:
        total = sum(g.count for g in self.groups)
        if total > CAPACITY:
            self.fail(f"{total} objects do not fit the {CAPACITY} places.", "Ask for fewer.")
        if not self.groups:
            self.fail("The prompt asks for no object at all.")
        for absent in self.absent:
            clash = next((g for g in self.groups if absent.covers(g.noun)), None)
            if clash:
                self.fail(f"The prompt asks for {the(clash.noun, clash.count)} and forbids it.")
        places = [g.cell for g in self.groups if g.cell]
        if len(set(places)) < len(places):
            self.fail("Two objects are asked for in one place.")


class _Instruction(_Reader):
    def read(self) -> Edit:
        verb = _VERBS.get(self.word)
        if verb is None:
            self.lost("add, remove, recolor, replace, move or make")
        resizing = self.word == "resize"
        self.at += 1
        edit = {
            "add": self.add,
            "remove": lambda: Edit("remove", *self.target()),
            "recolor": self.recolor,
            "replace": self.replace,
            "move": self.move,
            "change": lambda: self.change(resizing),
        }[verb]()
        self.end()
        return edit

    def target(self) -> tuple[Noun, Cell | None]:
        return self.the_noun(), self.place("in", "at")

    def one(self) -> Noun:
        if not self.take_any((("a",), ("an",), ("one",), ("1",))):
            self.lost("'a'")
        return self.noun()

    def destination(self, *prepositions: str) -> tuple[Cell | None, Anchor | None]:
        to = self.place(*prepositions)
        kind = None if to else self.relation()
        return to, Anchor(kind, self.the_noun()) if kind else None

    def add(self) -> Edit:
        new = self.one()
        to, anchor = self.destination("in", "at")
        return Edit("add", new=new, to=to, anchor=anchor)

    def recolor(self) -> Edit:
        target, cell = self.target()
        self.take("to")
        return Edit("recolor", target, cell, Noun(color=self.color()))

    def color(self) -> str:
        if self.word not in COLORS:
            self.lost(f"a color ({', '.join(COLORS)})")
        self.at += 1
        return self.words[self.at - 1]

    def replace(self) -> Edit:
        target, cell = self.target()
        if not self.take_any((("with",), ("by",), ("for",))):
            self.lost("'with'")
        return Edit("replace", target, cell, self.one())

    def move(self) -> Edit:
        target, cell = self.target()
        to, anchor = self.destination("to", "in")
        return Edit("move", target, cell, to=to, anchor=anchor)

    def change(self, resizing: bool) -> Edit:
        """'make the circle large', 'make the circle blue', 'turn the circle into a square', 'change the color
        of the circle to blue'."""
        self.take_any((("the", "color", "of"), ("the", "colour", "of")))
        target, cell = self.target()
        if not resizing and self.take("into"):
            return Edit("replace", target, cell, self.one())
        self.take("to")
        if self.word in _SIZE_WORDS:
            self.at += 1
            return Edit("resize", target, cell, Noun(size=_SIZE_WORDS[self.words[self.at - 1]]))
        if resizing:
            self.lost(f"a size ({', '.join(SIZES)})")
        return Edit("recolor", target, cell, Noun(color=self.color()))


def _nearest(word: str) -> str:
    meant = _MEANT.get(word) or next(iter(difflib.get_close_matches(word, _TELLING, 1, 0.75)), None)
    if meant:
        return f"The nearest it knows is '{meant}'."
    return f"It knows {', '.join(SHAPES)} in {', '.join(COLORS)}, {' and '.join((SIZES[0], SIZES[2]))}."
