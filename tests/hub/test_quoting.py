"""No value of a stranger's files changes the structure of a card: not its front matter, its Python,
its blocks, its links."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from sae_lens_bipolar.hub.base_models import base_model, is_hub_name
from sae_lens_bipolar.hub.benchmarks import Bench
from sae_lens_bipolar.hub.card import write_card
from sae_lens_bipolar.hub.quoting import code, fenced, link, python, text
from sae_lens_bipolar.hub.staging import Staged, stage
from sae_lens_bipolar.runs.sources import find_saes
from tests.hub.published_run import write_bench, write_run

markdown_it = pytest.importorskip("markdown_it")
PARSER = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])

FRAGMENTS = (
    *(
        '"',
        "'",
        "\\",
        "`",
        "```",
        "~~~",
        "|",
        "\\|",
        "\n",
        "\r\n",
        "\n\n",
        "---\n",
        "===",
        "\u2028",
    ),
    *("<script>alert(1)</script>", "<!--", "</table>", "<https://evil.example>", "&lt;", "\x1b[2J"),
    *("](https://evil.example)", "[x](javascript:x)", "![i](//e)", "[x]: https://evil.example\n"),
    *("https://evil.example/x", "www.evil.example", "me@evil.example", "# h", "- i", "1. i", "> q"),
    *(
        '")\nimport os\nos.system("id")\n#',
        "{{ 7*7 }}",
        "{% raw %}",
        "{x}",
        "$x$",
        "**",
        "__",
        "_a_",
    ),
    *("\u202e", "\udcff", "\0", "| a | b |\n| - | - |\n", "license: mit\n", "\t", "    indented"),
)
HOSTILE = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), min_size=1, max_size=5
).map("".join)
EXAMPLES = (
    'gpt2")\nimport os; os.system("id")\n#',
    "x\n```\n\n# Heading\n\n<img src=x onerror=alert(1)>",
    "a | b |\n| c | d",
    "](https://evil.example) ![x](https://evil.example/i.png)",
    "---\nlicense: evil\n---\n",
    "x" * 1_000_000,
    "``````\n",
)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    run = write_run(tmp_path_factory.mktemp("quoting") / "run", ("abstopk", "bi_jumprelu"))
    numbers = [("ce_loss_score", None, 0.5)]
    write_bench(run / "bench", run / "checkpoints/abstopk", "core", ("signed",), numbers)
    folder = tmp_path_factory.mktemp("folder")
    return stage({source.run_name: source for source in find_saes([run])}, folder, True)


def with_values(staged: Staged, value: Any) -> Staged:
    """`staged` with `value` in every field that comes from a file without being checked."""
    metadata = {"hook_name": value, "dataset_path": value, "context_size": value}
    metadata |= {"training_architecture_details": {"k": value, "l0_target": value}}
    metadata |= {"sae_lens_training_version": value}
    runner = dict.fromkeys(("lr", "seed", "train_batch_size_tokens", "training_tokens"), value)
    keys = ("seed", "commit", "device", "command")
    origin = dict.fromkeys(keys, value) | {"packages": {"sae-lens": value}}
    row = {"architecture": value, "l0": value, "n_eval_tokens": value, "n_train_tokens": value}
    row |= {"with_sinks": {"l0": value}, "seed": value}
    settings = {"data_folder": value, "context_length": value}
    return replace(
        staged,
        saes=[
            replace(sae, model=base_model(str(value), str(value)), metadata=metadata, runner=runner)
            for sae in staged.saes
        ],
        config={"context_size": value, "lr": value},
        environment=origin,
        rows=[{**known, **row} for known in staged.rows],
        benches=[
            Bench(str(value), bench.rows, {**bench.config, **settings}, str(value))
            for bench in staged.benches
        ],
    )


def structure(card: str) -> dict[str, Any]:
    """Everything of a card but its words."""
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    tokens = PARSER.parse(body)
    blocks = [(t.type, t.tag, t.info, t.level) for t in tokens]
    inline = [child for t in tokens for child in t.children or ()]
    programs = [t.content for t in tokens if t.type == "fence" and t.info == "python"]
    return {
        "front matter": sorted(yaml.safe_load(front).items(), key=str),
        "blocks": blocks,
        "links": [child.attrs["href"] for child in inline if child.type == "link_open"],
        "inline": sorted({child.type for child in inline} & {"html_inline", "image", "s_open"}),
        "programs": [ast.dump(blanked(ast.parse(program))) for program in programs],
    }


def blanked(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = ""
    return tree


def card_with(staged: Staged, value: Any, revision: str) -> str:
    path = write_card(with_values(staged, value), "ada/signed", "mit", revision)
    return path.read_text(encoding="utf-8")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(HOSTILE)
def test_no_value_changes_the_structure_of_a_card(staged: Staged, value: str) -> None:
    assume(value.strip() and not is_hub_name(value))
    assert structure(card_with(staged, value, value)) == structure(card_with(staged, "x", "x"))


for one in EXAMPLES:
    test_no_value_changes_the_structure_of_a_card = example(value=one)(
        test_no_value_changes_the_structure_of_a_card
    )


@pytest.mark.parametrize("value", [["a"], {"a": "|"}, 10**39, float("nan"), True, b"x"])
def test_values_of_other_types_are_no_traceback(staged: Staged, value: Any) -> None:
    assert structure(card_with(staged, value, "x"))["programs"]


def test_a_card_stays_small_whatever_a_name_holds(staged: Staged) -> None:
    assert len(card_with(staged, "<b>`|" * 1_000_000, "x")) < 60_000


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_each_kind_of_quoting_holds_its_place(value: str) -> None:
    assert ast.literal_eval(python(value)) == value
    assert "\n" not in python(value)
    assert "`" not in python(value)
    for quoted in (text(value), code(value), link(value)):
        table = PARSER.parse(f"| a | b |\n| - | - |\n| {quoted} | z |\n\nend\n")
        assert [t.type for t in table].count("td_open") == 2
        (line,) = [t for t in PARSER.parse(f"before {quoted} after") if t.children]
        kinds = {child.type for child in line.children or ()}
        assert kinds <= {"text", "text_special", "code_inline", "link_open", "link_close"}
        assert line.content.startswith("before ")
        assert line.content.endswith(" after")
    tokens = PARSER.parse(f"before\n\n{fenced(value)}\n\nafter\n")
    assert [t.type for t in tokens if t.level == 0] == [
        *("paragraph_open", "paragraph_close", "fence", "paragraph_open", "paragraph_close")
    ]


def test_ordinary_values_read_as_they_are() -> None:
    assert text("sign_aware_gated, k = 8, 0.5 ≥ 0 (x)") == "sign_aware_gated, k = 8, 0.5 ≥ 0 (x)"
    assert code("blocks.0.hook_mlp_out") == "`blocks.0.hook_mlp_out`"
    assert python("ada/signed") == '"ada/signed"'
    assert link("a/b") == "[a/b](https://huggingface.co/a/b)"
    assert text("see https://x.example") == "`see https://x.example`"


def test_the_templates_quote_what_no_filter_has(tmp_path: Path) -> None:
    from sae_lens_bipolar.hub.quoting import environment

    (tmp_path / "t.md").write_text("{{ v }} {{ v ~ '' }} {{ v | upper }}")
    shown = environment(tmp_path).get_template("t.md").render(v="<b>[x](y)")
    assert "<" not in shown
    assert "[" not in shown
