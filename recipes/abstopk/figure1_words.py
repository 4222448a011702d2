"""Antonyms on eight axes, their controls, and the templates they are read in.

A control pair is an antonym and another antonym's partner: the same words, of the same part of
speech and like frequency, that are no opposites of each other.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_lens_bipolar.errors import DataError

# Axis -> part of speech, and pairs "a/b".
AXES: dict[str, tuple[str, str]] = {
    "gender": (
        "noun",
        "man/woman men/women boy/girl boys/girls king/queen father/mother brother/sister "
        "son/daughter husband/wife uncle/aunt prince/princess actor/actress sons/daughters "
        "brothers/sisters lord/lady dad/mom guy/gal grandfather/grandmother male/female "
        "hero/heroine he/she his/her himself/herself",
    ),
    "society": (
        "noun",
        "war/peace friend/enemy friends/enemies life/death victory/defeat success/failure "
        "profit/loss teacher/student doctor/patient parent/child master/servant winner/loser "
        "freedom/slavery truth/lie heaven/hell question/answer hope/fear strength/weakness "
        "birth/funeral advantage/disadvantage light/darkness host/guest pleasure/pain "
        "virtue/vice wealth/poverty order/chaos",
    ),
    "motion": (
        "verb",
        "rise/fall push/pull come/go open/close enter/leave arrive/depart start/stop "
        "stand/sit raise/lower expand/contract grow/shrink float/sink climb/descend "
        "advance/retreat add/remove lift/drop increase/decrease build/destroy join/separate "
        "include/exclude rising/falling pushed/pulled opened/closed opening/closing "
        "coming/going",
    ),
    "exchange": (
        "verb",
        "give/take buy/sell win/lose teach/learn love/hate accept/reject agree/disagree "
        "remember/forget send/receive lend/borrow save/spend praise/blame help/hurt "
        "succeed/fail live/die laugh/cry hide/reveal attack/defend speak/listen bought/sold "
        "won/lost gave/took encourage/discourage confirm/deny follow/lead allow/prevent "
        "loved/hated",
    ),
    "senses": (
        "adjective",
        "big/little large/small tall/short hot/cold warm/cool wet/dry hard/soft heavy/light "
        "bright/dark loud/quiet fast/slow wide/narrow thick/thin deep/shallow rough/smooth "
        "sharp/dull strong/weak full/empty sweet/bitter clean/dirty black/white high/low "
        "young/old tight/loose huge/tiny solid/liquid",
    ),
    "value": (
        "adjective",
        "good/bad happy/sad right/wrong true/false rich/poor easy/difficult beautiful/ugly "
        "kind/cruel brave/afraid safe/dangerous smart/stupid best/worst better/worse "
        "positive/negative healthy/sick guilty/innocent useful/useless legal/illegal "
        "possible/impossible friendly/hostile public/private simple/complex cheap/expensive "
        "famous/unknown alive/dead wise/foolish",
    ),
    "place": (
        "adverb",
        "up/down in/out above/below over/under inside/outside here/there near/far north/south "
        "east/west top/bottom front/back forward/backward indoors/outdoors northern/southern "
        "eastern/western inner/outer internal/external upward/downward local/foreign on/off "
        "to/from with/without upstairs/downstairs",
    ),
    "time": (
        "adverb",
        "before/after early/late always/never first/last now/then yesterday/tomorrow "
        "past/future beginning/ending soon/later often/rarely previous/next former/latter "
        "morning/evening day/night summer/winter spring/autumn start/finish "
        "temporary/permanent ancient/modern initial/final earlier/later dawn/dusk older/newer "
        "begin/end",
    ),
}

# What stands before the word, and after it; any part of speech fits, because the word is named.
TEMPLATES: tuple[tuple[str, str], ...] = (
    ("The word is", ", he said."),
    ("She wrote the word", " on the board."),
    ("In the dictionary I looked up", " and read on."),
    ("The next word in the list was", ", she said."),
    ("He could not spell", " at all."),
    ("The teacher asked the class about the meaning of", " today."),
    ("They only said", " and nothing more."),
    ("The first word of the poem is", " in capitals."),
    ("My answer was", ", of course."),
    ("We have to translate", " into French."),
    ("The sign on the wall says", " in red."),
    ("You should not use the word", " here."),
    ("Please repeat after me:", " and again."),
    ("The title of the film is", " and more."),
    ("The child pointed and said", " very clearly."),
    ("One word came to her mind:", " it was."),
    ("The crossword needs a word like", " in it."),
    ("The letter ended with the word", " and a name."),
    ("He whispered", " to himself."),
    ("On the first page somebody had written", " in pencil."),
    ("It was all about", " that year."),
    ("The speech was about", " and about us."),
    ("I never thought much about", " before that."),
    ("People often talk about", " in this town."),
    ("What comes to mind when you hear", " in a song?"),
    ("The song repeats the word", " many times."),
)


class Pair(NamedTuple):
    """Two words, as single tokens with a space before them."""

    axis: str
    a: str
    b: str


def antonyms(tokenizer: Any, n: int) -> list[Pair]:
    """`n` pairs of words of one token each, all words different, as many of each axis as there are.

    Raises:
        DataError: if there are fewer.
    """
    found: dict[str, list[Pair]] = {}
    used: set[str] = set()
    for axis, (_, listed) in AXES.items():
        for one in listed.split():
            a, b = one.split("/")
            if {a, b} & used or not (_is_one(tokenizer, a) and _is_one(tokenizer, b)):
                continue
            used |= {a, b}
            found.setdefault(axis, []).append(Pair(axis, a, b))
    longest = max(map(len, found.values()), default=0)
    in_turn = [pairs[i] for i in range(longest) for pairs in found.values() if i < len(pairs)]
    if len(in_turn) < n:
        raise DataError(f"{len(in_turn)} antonym pairs are of one token each, {n} are asked for")
    return in_turn[:n]


def controls(pairs: Sequence[Pair], counts: Counter[str]) -> list[Pair]:
    """For each pair, `a` with another pair's `b`: of like frequency, no opposite.

    Partners are exchanged within a part of speech and, where it has two axes, between them, so that
    the summed distance in log frequency between each word and the one it replaces is smallest.

    Args:
        counts: occurrences of words in a text.
    """
    from scipy.optimize import linear_sum_assignment

    log = {word: np.log1p(counts[word]) for pair in pairs for word in (pair.a, pair.b)}
    found: dict[int, Pair] = {}
    for speech in dict.fromkeys(kind for kind, _ in AXES.values()):
        group = [i for i, pair in enumerate(pairs) if AXES[pair.axis][0] == speech]
        axes = {pairs[i].axis for i in group}
        cost = np.zeros((len(group), len(group)))
        for row, i in enumerate(group):
            for column, j in enumerate(group):
                far = abs(log[pairs[i].b] - log[pairs[j].b])
                same = pairs[i].axis == pairs[j].axis if len(axes) > 1 else i == j
                cost[row, column] = far + 1e6 * same
        rows, columns = linear_sum_assignment(cost)
        for row, column in zip(rows, columns, strict=True):
            i, j = group[row], group[column]
            if AXES[pairs[i].axis] != AXES[pairs[j].axis] or (len(axes) == 1 and i != j):
                found[i] = Pair(pairs[i].axis, pairs[i].a, pairs[j].b)
    return [found[i] for i in sorted(found)]


def count_words(texts: Sequence[str]) -> Counter[str]:
    """Occurrences of words, letter for letter, without the punctuation at their ends."""
    return Counter(word.strip(".,;:!?\"'()") for text in texts for word in text.split())


def _is_one(tokenizer: Any, word: str) -> bool:
    return len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
