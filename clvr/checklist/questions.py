"""What a yes/no question asks, as far as rules can tell: whether two ask the same, whether one asks several things.

The rules are for English and err on the side of leaving a question as it is: what is quoted or in parentheses is
one word, and a question is taken apart only where each part certainly means what it meant in the whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import dropwhile, groupby

from ..trajectory import CheckKind


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_COLORS = _set(
    "red green blue yellow purple black white orange pink brown gray grey golden silver violet turquoise cyan "
    "magenta beige crimson teal"
)
_SIZES = _set("small large big tiny huge little giant tall short long wide narrow medium")
_SHAPES = _set("round square circular rectangular triangular oval flat")
_MATERIALS = _set("wooden metal metallic plastic glass stone ceramic leather")
_ADJECTIVES: dict[str, CheckKind] = {
    **dict.fromkeys(_COLORS, "color"),
    **dict.fromkeys(_SIZES, "size"),
    **dict.fromkeys(_SHAPES, "shape"),
    **dict.fromkeys(_MATERIALS, "other"),
}
_COUNTED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS: dict[str, str] = {word: str(number) for number, word in enumerate(_COUNTED, 1)}
_SPELLINGS: dict[str, str] = {
    **_NUMBERS,
    "colour": "color",
    "colored": "color",
    "coloured": "color",
    "grey": "gray",
}
_ARTICLES = _set("a an the any")
_BEGINNINGS: dict[str, str] = {"are": "is", "were": "is", "was": "is", "do": "does"}
_PRONOUNS = _set("it its they them their he him his she her hers this that these those both each ones")
_NEGATIONS = _set("not never without neither nor missing absent lacking except unless only")
_TIES = _set(
    "in on at of with by from to into onto over under above below beneath behind beside near around across through "
    "between among inside outside against along next than as like for which who whose where while made asleep awake "
    "alone together alive"
)
"""Words that bind what follows to what came before."""
_PICTURE = r"(?:image|picture|photo|photograph|scene|drawing|painting|illustration)"
_HELD = "\ue000-\uf8ff"
"""Private characters, each standing for a piece of text that the rules must not look into."""

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」|‘[^’]*’(?!\w)|(?<!\w)'(?:[^']|'(?=\w))*'(?!\w)|\([^()]*\)")
_LOOSE = re.compile(r"[\"“”«»「」()]|(?<!\w)['‘]")
_SHADE = rf"(?:(?:light|dark|bright|pale|deep) )?(?:{'|'.join(sorted(_COLORS))})"
_PAIRS = re.compile(
    rf"\b{_SHADE}(?:, {_SHADE})*,? (?:and|&) {_SHADE}\b"
    r"|\b(\w+) and \1\b|\bhundred and\b|\bbetween\b.*?\band\b|\bsalt and pepper\b|\brock and roll\b"
    r"|\bup and down\b|\bback and forth\b|\bbed and breakfast\b|(?<=\w )(?-i:[A-Z]\w+ (?:and|&) [A-Z]\w+)",
    re.IGNORECASE,
)
"""What holds an 'and' and yet is one thing."""
_JOINED = re.compile(r"\band\b|\bas well as\b|&", re.IGNORECASE)
_NEXT_CLAUSE = re.compile(r"\?\s*(?:and\s+)?|,?\s+and\s+(?=(?:is|are|was|were|does|do)\b)", re.IGNORECASE)
_WHOLE_CLAUSE = re.compile(
    rf"(?:is|are|was|were|does|do) (?:the|an?|there|some|no|\d+|{'|'.join(_NUMBERS)})\b", re.IGNORECASE
)
_NEXT_THING = re.compile(r",?\s+(?:and|as well as)\s+|\s*&\s*|,\s*", re.IGNORECASE)
_THINGS = re.compile(
    rf"(?P<stem>(?P<be>is|are) there|(?:does|do) (?:the |this )?{_PICTURE} \w+) (?P<list>.+)", re.IGNORECASE
)
_DETERMINED = re.compile(
    rf"(?P<exactly>exactly )?(?P<count>an?|another|some|no|\d+|{'|'.join(_NUMBERS)}) (?P<thing>.+)", re.IGNORECASE
)
_DESCRIBED = re.compile(
    r"(?P<stem>(?:is|are) (?:the|this|that) .+?) (?P<list>[\w-]+(?:, [\w-]+)*,? and [\w-]+)", re.IGNORECASE
)
_TWO_DESCRIBED = re.compile(r"(?P<be>is|are) (?P<first>the .+) and (?P<second>the .+)", re.IGNORECASE)
_EXISTENCE = tuple(
    re.compile(pattern)
    for pattern in (
        rf"is there (.+?)(?: (?:present|visible|shown)| in {_PICTURE})?",
        rf"does (?:{_PICTURE}|it) (?:show|contain|include|depict|feature|have) (.+)",
        rf"can (.+) be seen(?: in {_PICTURE})?",
        rf"is (.+) (?:there|present|visible|shown|in {_PICTURE})",
    )
)


@lru_cache(maxsize=4096)
def same(question: str) -> tuple[str, ...]:
    """A form that two questions share where they certainly ask the same: regardless of case, punctuation, articles
    and the marks of a quotation, of how one asks whether something is there, and of the order of a colour and a
    size."""
    text, held = _hold(question)
    words = [unicodedata.normalize("NFKC", word).casefold().strip(".,;:!?") for word in text.split()]
    words = [_SPELLINGS.get(word, word) for word in words if word and word not in _ARTICLES]
    words[:1] = [_BEGINNINGS.get(word, word) for word in words[:1]]
    said = " ".join(words)
    match = next((m for m in (pattern.fullmatch(said) for pattern in _EXISTENCE) if m), None)
    words = ["there", *match[1].split()] if match else words
    bare = {mark: f'"{text[1:-1]}' if _QUOTED.fullmatch(text) else text for mark, text in held.items()}
    return tuple(_released(word, bare) for word in _ordered(words))


def split(question: str) -> tuple[str, ...] | None:
    """The atomic questions of a question; the question alone where it is one; None where it asks several things
    but cannot be taken apart by rule."""
    text, held = _hold(question)
    if _LOOSE.search(text):
        return (question,)
    text = _PAIRS.sub(lambda match: _put_by(match[0], held), text)
    parts = _parts(text.strip().rstrip("?").strip())
    if parts is None:
        return None
    return tuple(_released(part, held) for part in parts) if len(parts) > 1 else (question,)


def kind_of(part: str, kind: CheckKind) -> CheckKind:
    """The kind of a question that was part of one of `kind`."""
    words = part.rstrip("?").lower().split()
    if words[1:3] == ["there", "no"]:
        return "absence"
    if kind == "count" and not any(word.isdigit() or word in _NUMBERS for word in words):
        return "object"
    described = words[1:2] == ["the"] and words[-1] in _ADJECTIVES
    return _ADJECTIVES[words[-1]] if described else kind


def slug(text: str) -> str:
    """A name for a question: its first telling words, in lower case, with dashes."""
    words = [word for word in re.findall(r"\w+", text.casefold()) if word not in _ARTICLES]
    telling = list(dropwhile(lambda word: word in ("is", "are", "there", "does", "do"), words))
    return "-".join((telling or words)[:6])[:48].strip("-_") or "check"


def _hold(question: str) -> tuple[str, dict[str, str]]:
    """The question with a private character for everything quoted, and what each stands for."""
    held: dict[str, str] = {}
    plain = " ".join(question.split())
    if re.search(f"[{_HELD}]", plain):
        return _put_by(plain, held), held
    return _QUOTED.sub(lambda match: _put_by(match[0], held), plain), held


def _put_by(text: str, held: dict[str, str]) -> str:
    mark = chr(0xE000 + len(held))
    held[mark] = text
    return mark


def _released(text: str, held: dict[str, str]) -> str:
    """What was put by last may hold what was put by before."""
    for mark, hidden in reversed(held.items()):
        text = text.replace(mark, hidden)
    return text


def _ordered(words: Sequence[str]) -> list[str]:
    """Neighbouring adjectives of different classes in a fixed order; two colours stay as they are."""
    found: list[str] = []
    for adjectives, run in groupby(words, key=lambda word: word in _ADJECTIVES):
        some = list(run)
        kinds = [_ADJECTIVES[word] for word in some] if adjectives else []
        found += sorted(some) if adjectives and len(set(kinds)) == len(some) else some
    return found


def _parts(text: str) -> tuple[str, ...] | None:
    """`text` has no question mark at its end; the parts have one."""
    clauses = _NEXT_CLAUSE.split(text)
    if len(clauses) == 1 and not _JOINED.search(text):
        return (f"{text}?",)
    if "?" in text and not all(_WHOLE_CLAUSE.match(clause) for clause in clauses):
        return (f"{text}?",)
    if _words(text) & _NEGATIONS:
        return None
    if len(clauses) > 1:
        return _clauses(clauses)
    return _things(text) or _descriptions(text)


def _clauses(clauses: Sequence[str]) -> tuple[str, ...] | None:
    """Whole questions in a row, where none speaks of another's subject as 'it'."""
    if any(_words(clause) & _PRONOUNS or not _WHOLE_CLAUSE.match(clause) for clause in clauses[1:]):
        return None
    parts = [_parts(clause) for clause in clauses]
    return tuple(_asked(question) for part in parts for question in part or ()) if None not in parts else None


def _things(text: str) -> tuple[str, ...] | None:
    """'Is there a dog, two cats and a bird?': each with its own article or number, and nothing said of it."""
    match = _THINGS.fullmatch(text)
    found = [_DETERMINED.fullmatch(thing) for thing in _NEXT_THING.split(match["list"])] if match else []
    things = [thing for thing in found if thing and _plain(thing["thing"])]
    if match is None or len(things) < max(2, len(found)):
        return None
    counts = [thing["count"].lower() for thing in things]
    if counts[0] == "no" and set(counts) != {"no"}:
        return None
    exactly = "exactly " if things[0]["exactly"] else ""
    return tuple(_asked(_thing(match, thing, exactly)) for thing in things)


def _thing(match: re.Match[str], thing: re.Match[str], exactly: str) -> str:
    count = thing["count"].lower()
    number = _NUMBERS.get(count, count)
    stem = match["stem"]
    if match["be"] and (number.isdigit() or number in ("a", "an", "another")):
        stem = f"{'Are' if number.isdigit() and number != '1' else 'Is'} there"
    how = thing["exactly"] or (exactly if number.isdigit() else "")
    return f"{stem} {how}{thing['count']} {thing['thing']}"


def _plain(thing: str) -> bool:
    """A noun with words before it, as far as can be told."""
    words = _words(thing)
    tied = words & (_TIES | _PRONOUNS | _NUMBERS.keys() | {"a", "an", "the", "no", "some"})
    return not tied and not any(word.endswith("ing") for word in words)


def _descriptions(text: str) -> tuple[str, ...] | None:
    """'Is the dog big and brown?', 'Is the dog brown and the cat black?'"""
    match = _DESCRIBED.fullmatch(text)
    listed = [word.lower() for word in _NEXT_THING.split(match["list"])] if match else []
    if match and all(word in _ADJECTIVES for word in listed):
        return tuple(_asked(f"{match['stem']} {word}") for word in listed)
    match = _TWO_DESCRIBED.fullmatch(text)
    halves = (match["first"], match["second"]) if match else ()
    if match and all(_is_description(half) for half in halves):
        return tuple(_asked(f"{match['be']} {half}") for half in halves)
    return None


def _is_description(text: str) -> bool:
    """'the tall man old' is none that rules can read, 'the man tall' is."""
    words = text.lower().split()
    return len(words) > 2 and words[-1] in _ADJECTIVES and _plain(" ".join(words[1:])) and "," not in text


def _asked(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('?')}?"


def _words(text: str) -> set[str]:
    return {word.casefold() for word in re.findall(r"[\w'’-]+", text)} | {
        "not" for word in re.findall(r"n['’]t\b", text)
    }
