"""Small stand-ins for every data set the benchmark suites read, under their own Hub names.

Ids, configs, splits, columns and value types are the real ones'; the rows are made here from a
closed vocabulary, so that a word-level tokenizer (`vocabulary`) covers them. Each class has words
of its own within the first hundred characters: a probe on any model, random ones included, can
tell classes apart. Sizes serve settings up to TRAIN_SIZE and TEST_SIZE; each question has four
answers, each letter right equally often.

    serve_suite_data(hub)                     # all of it, on a tests' Hub
    write_forget_corpus(path)                 # unlearning's gated corpus as a local file

Real quirks kept: `codeparrot/github-code` has a loading script, so it needs `trust_remote_code`;
"wikitext" answers 307 to "Salesforce/wikitext" (which huggingface_hub >= 1 can no longer open by
its short name); the forget corpus is gated (401 without a token, 403 without permission).
"""

import io
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.hub.fake.server import HubServer
from tests.tiny_models import sentences

TRAIN_SIZE, TEST_SIZE = 200, 100  # largest `*_train_size` and `*_test_size` these data serve
FORGET_REPO = "cais/wmdp-bio-forget-corpus"
FORGET_TOKEN = "hf_granted_access"  # of the one user to whom the forget corpus is open
PROFESSIONS = (0, 1, 2, 6, 9, 11, 13, 14, 18, 19, 20, 21, 22, 25, 26)  # of 28, those read
CATEGORIES = (1, 2, 3, 5, 6, 11, 18, 24, 26, 30)  # of 34, those read
LANGUAGE_PAIRS = ("en-fr", "fr-it", "de-en", "es-fr", "nl-pt")
SUBJECTS = (
    *("high_school_us_history", "college_computer_science"),
    *("high_school_geography", "human_aging"),
)
QUESTIONS = 24  # a subject; a multiple of four

_LISTED = """
    apple amber anvil arrow basil beach birch bread cabin candle cedar clover daisy dagger desert
    drum eagle early ember engine fable falcon fern flute garden ginger glass grape harbor hazel
    heron honey icon igloo indigo island jacket jasper jelly jewel kettle kite knot koala ladder
    lemon lily lunar maple meadow mirror mosaic napkin needle nickel noodle oasis ocean olive orbit
    paper pebble pepper piano quartz queen quilt quiver rabbit radish river rocket saddle salmon
    silver spider tiger timber tulip tunnel umber uncle union urchin valley velvet violin vortex
    wagon walnut willow winter yacht yarrow yellow yeast zebra zenith zigzag zinc
"""
_WORDS = _LISTED.split()
FILLER = ["the", "a", "of", "and", "to", "in", "is", "on", "with", "for"]
SIDES = {0: ("he", "his", "him"), 1: ("she", "her", "hers")}
RATINGS = {1.0: ("bad", "poor", "awful"), 5.0: ("good", "great", "lovely")}
TOPICS = {  # subject -> words that answer its questions right
    "wmdp-bio": ("virus", "toxin", "spore", "pathogen"),
    "high_school_us_history": ("treaty", "colony", "senate", "frontier"),
    "college_computer_science": ("stack", "compiler", "cache", "pointer"),
    "high_school_geography": ("delta", "plateau", "climate", "border"),
    "human_aging": ("memory", "retirement", "menopause", "frailty"),
}
WRONG_ANSWERS = ("table", "spoon", "carpet", "button", "pillow", "basket", "ribbon", "hammer")
_TONGUES = {
    "en": "the house and the water are not with this people because of which they were",
    "fr": "la maison et les eaux ne sont pas avec ce peuple parce que nous avons",
    "de": "das haus und die wasser sind nicht mit diesem volk weil wir haben",
    "es": "la casa y las aguas no son con este pueblo porque nosotros hemos",
    "nl": "het huis en de wateren zijn niet met dit volk omdat wij hebben",
    "it": "la casa e le acque non sono con questo popolo perché noi abbiamo",
    "pt": "a casa e as águas não são com este povo porque nós temos",
}
_CODE = {
    "C": ("#include <stdio.h>", "int main(void) {", 'printf("%d", n);', "return 0; }"),
    "Python": ("import os", "def main(self):", "    print(value)", "    return None"),
    "HTML": ("<html><body>", '<div class="row">', "<p>text</p>", "</div></body></html>"),
    "Java": ("public class Main {", "private final String name;", "System.out.println(x);", "}"),
    "PHP": ("<?php", "$value = array();", "echo $value;", "foreach ($a as $b) { }"),
}
_SUFFIX = {"C": "c", "Python": "py", "HTML": "html", "Java": "java", "PHP": "php"}
_SCRIPT = '''\
"""Code by language, after the real loading script of codeparrot/github-code."""
import datasets
import pyarrow.parquet as pq

LANGUAGES = {"c": "C", "py": "Python", "html": "HTML", "java": "Java", "php": "PHP"}
COLUMNS = ["code", "repo_name", "path", "language", "license"]


class GithubCodeConfig(datasets.BuilderConfig):
    def __init__(self, *args, languages=["all"], licenses=["all"], **kwargs):
        super().__init__(*args, name="all-all", **kwargs)
        self.languages, self.licenses = languages, licenses


class GithubCode(datasets.GeneratorBasedBuilder):
    BUILDER_CONFIG_CLASS = GithubCodeConfig
    BUILDER_CONFIGS = [GithubCodeConfig()]
    DEFAULT_CONFIG_NAME = "all-all"

    def _info(self):
        text = {name: datasets.Value("string") for name in COLUMNS}
        return datasets.DatasetInfo(
            features=datasets.Features(text | {"size": datasets.Value("int32")})
        )

    def _split_generators(self, dl_manager):
        files = dl_manager.download(["data/train-00000-of-00001.parquet"])
        return [datasets.SplitGenerator(datasets.Split.TRAIN, gen_kwargs={"files": files})]

    def _generate_examples(self, files):
        for file in files:
            with open(file, "rb") as opened:
                for key, row in enumerate(pq.ParquetFile(opened).read().to_pylist()):
                    language = LANGUAGES[row["path"].rsplit(".", 1)[-1]]
                    if {"all", language} & {*self.config.languages}:
                        yield key, row | {"language": language}
'''


def serve_suite_data(hub: HubServer) -> None:
    """Put every data set of the seven suites on `hub`, and a user who may read the gated one."""
    hub.add_user("grantee", token=FORGET_TOKEN, role="read")
    sizes = {"train": TRAIN_SIZE // 2 + 4, "test": TEST_SIZE // 2 + 2}
    bios = {
        split: [
            {"hard_text": _text(f"{split} {i}", class_words(job), SIDES[side])}
            | {"profession": job, "gender": side}
            for job in PROFESSIONS
            for side in SIDES
            for i in range(size)
        ]
        for split, size in (sizes | {"dev": 4}).items()
    }
    _add(hub, "LabHC/bias_in_bios", {"default": bios})
    amazon = {
        split: [
            {
                "text": _text(f"{split} {i}", class_words(kind), words),
                "category": kind,
                "rating": rating,
            }
            for kind in CATEGORIES
            for rating, words in RATINGS.items()
            for i in range(size)
        ]
        for split, size in sizes.items()
    }
    _add(hub, "canrager/amazon_reviews_mcauley_1and5", {"default": amazon})
    news = {
        split: [
            {"text": _text(f"{split} {i}", class_words(label), ()), "label": label}
            for label in range(4)
            for i in range(size)
        ]
        for split, size in sizes.items()
    }
    _add(hub, "fancyzhx/ag_news", {"default": news})
    _add(hub, "Helsinki-NLP/europarl", {pair: _parliament(pair) for pair in LANGUAGE_PAIRS})
    code = {"README.md": "---\nlicense: other\n---\n", "github-code.py": _SCRIPT}
    code |= {"data/train-00000-of-00001.parquet": _parquet(_programs())}
    hub.add_repository("codeparrot/github-code", code, repo_type="dataset")
    ravel = {"README.md": "# RAVEL prompts\n"} | ravel_files()
    hub.add_repository("adamkarvonen/ravel_prompts", ravel, repo_type="dataset")
    _add(hub, "cais/wmdp", {"wmdp-bio": {"test": questions("wmdp-bio")}})
    _add(
        hub,
        "cais/mmlu",
        {name: {"test": [{"subject": name} | q for q in questions(name)]} for name in SUBJECTS},
    )
    wiki = {
        split: [{"text": text} for text in encyclopedia(seed)]
        for seed, split in enumerate(("train", "validation", "test"))
    }
    _add(hub, "Salesforce/wikitext", {"wikitext-2-raw-v1": wiki})
    hub.moved["dataset", "wikitext"] = "Salesforce/wikitext"
    web = [{"text": _prose(f"web {i}", 30)} for i in range(120)]
    _add(hub, "Skylion007/openwebtext", {"plain_text": {"train": web}})
    forget = {"default": {"train": forget_corpus()}}
    _add(hub, FORGET_REPO, forget, gated=True, granted={"grantee"})


def questions(subject: str) -> list[dict[str, Any]]:
    """QUESTIONS rows of `question`, `choices`, `answer`: one choice is a word of the subject.

    Every question, and every choice, has the same number of words.
    """
    draw = random.Random(subject)
    rows = []
    for i in range(QUESTIONS):
        choices: list[str] = [*draw.sample(WRONG_ANSWERS, 3)]
        choices.insert(i % 4, TOPICS[subject][(i // 4) % 4])
        asked = f"which word of {draw.choice(_WORDS)} is the answer"
        rows.append({"question": asked, "choices": choices, "answer": i % 4})
    return rows


def forget_corpus() -> list[dict[str, str]]:
    """Papers, as it were, full of the words that answer wmdp-bio."""
    words = TOPICS["wmdp-bio"]
    return [
        {"title": f"paper {i}", "text": " ".join(_text(f"{i} {j}", words, ()) for j in range(6))}
        for i in range(80)
    ]


def write_forget_corpus(path: Path) -> Path:
    """Write the forget corpus as the JSON lines that SAEBench reads; its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in forget_corpus()), encoding="utf-8")
    return path


def encyclopedia(seed: int) -> list[str]:
    """Rows of wikitext: empty lines, headings, and paragraphs without a word of biology."""
    rows = []
    for i in range(40):
        rows += ["", f" = Chapter {i} = \n", _prose(f"wiki {seed} {i}", 10) + " \n"]
    return rows


def ravel_files() -> dict[str, str]:
    """The four JSON files of each entity type.

    Every label is a list of letters and every template speaks of a language, so that a completion
    is right when it holds one of the letters (evals/ravel/validation.py, "language"): a model that
    knows nothing gets many prompts right, and different entities have different labels.
    """
    asked = {
        "city": (("Country", "Continent", "Language"), "The language of the land where the city"),
        "nobel_prize_winner": (
            ("Country of Birth", "Field", "Gender"),
            "In the language of the prize the winner",
        ),
    }
    letters = ("e,t,o", "a,n,s", "i,r,d", "h,l,u")
    files: dict[str, str] = {}
    for kind, (attributes, start) in asked.items():
        entities = [word.capitalize() for word in _WORDS[:96:4]]
        templates = {
            name: [f"{start} %s has its {name.lower()} {end}" for end in ("is", "as", "in")]
            for name in attributes
        }
        contents = {
            "entity_attributes": {
                entity: {
                    name: letters[(i // 4**j + i + j) % 4] for j, name in enumerate(attributes)
                }
                for i, entity in enumerate(entities)
            },
            "entity_to_split": dict.fromkeys(entities, "train"),
            "attribute_to_prompts": templates,
            "prompt_to_split": {t: "train" for listed in templates.values() for t in listed},
        }
        for name, content in contents.items():
            files[f"ravel_{kind}_{name}.json"] = json.dumps(content)
    return files


def vocabulary() -> list[str]:
    """Every word of the prose and the questions, lower case, sorted."""
    prose = " ".join([*encyclopedia(0), *(row["text"] for row in forget_corpus())])
    words = {"".join(c for c in word if c.isalpha()) for word in prose.lower().split()}
    words |= {*_WORDS, *FILLER, *WRONG_ANSWERS, "which", "word", "answer"}
    for some in (*SIDES.values(), *RATINGS.values(), *TOPICS.values()):
        words.update(some)
    return sorted(words - {""})


def class_words(number: int) -> Sequence[str]:
    """The three words of a class."""
    return _WORDS[3 * number : 3 * number + 3]


def _text(seed: str, words: Sequence[str], others: Sequence[str]) -> str:
    """Sixteen words: half the class's own, a quarter of another trait, the rest filler."""
    draw = random.Random(f"{seed} {' '.join(words)} {' '.join(others)}")
    chosen = draw.choices(words, k=8) + (draw.choices(others, k=4) if others else [])
    chosen += draw.choices(FILLER, k=16 - len(chosen))
    draw.shuffle(chosen)
    return " ".join(chosen)


def _prose(seed: str, length: int) -> str:
    stream = sentences(random.Random(seed).getrandbits(30))
    return " ".join(next(stream) for _ in range(length))


def _parliament(pair: str) -> dict[str, list[dict[str, Any]]]:
    rows = []
    for i in range((TRAIN_SIZE + TEST_SIZE) // 2 + 4):
        draw = random.Random(f"{pair} {i}")
        rows.append(
            {
                "translation": {
                    tongue: " ".join(draw.choices(_TONGUES[tongue].split(), k=16))
                    for tongue in pair.split("-")
                }
            }
        )
    return {"train": rows}


def _programs() -> list[dict[str, Any]]:
    rows = []
    for i in range((TRAIN_SIZE + TEST_SIZE) // 2 + 4):
        for language, lines in _CODE.items():
            draw = random.Random(f"{language} {i}")
            code = "/* " + "licence " * 20 + "*/\n"
            while len(code) < 600:  # SAEBench wants more than 384 characters after the first 150
                code += draw.choice(lines) + "\n"
            path = f"src/file{i}.{_SUFFIX[language]}"
            rows.append({"code": code, "repo_name": f"someone/{draw.choice(_WORDS)}", "path": path})
            rows[-1] |= {"license": "mit", "size": len(code)}
    return rows


def _parquet(rows: Iterable[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([*rows]), file)
    return file.getvalue()


def _add(
    hub: HubServer,
    repo_id: str,
    configs: dict[str, dict[str, list[dict[str, Any]]]],
    **access: Any,
) -> None:
    """A data set repository of Parquet files, its configs listed in its card."""
    listed, files = [], {}
    for config, splits in configs.items():
        folder = "data" if config == "default" else config
        entries = [{"split": s, "path": f"{folder}/{s}-*"} for s in splits]
        listed.append({"config_name": config, "data_files": entries})
        for split, rows in splits.items():
            random.Random(f"{repo_id} {config} {split}").shuffle(shuffled := [*rows])
            files[f"{folder}/{split}-00000-of-00001.parquet"] = _parquet(shuffled)
    card = f"---\n{yaml.safe_dump({'configs': listed}, sort_keys=False)}---\n# {repo_id}\n"
    hub.add_repository(repo_id, {"README.md": card} | files, repo_type="dataset", **access)
