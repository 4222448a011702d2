"""What a paper claims beside what the result files of a recipe give: `results/claims.json`.

    python -m recipes.common.claims recipes/results

prints every verdict file below that folder as Markdown tables.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recipes.common.arguments import command, parse
from recipes.common.evidence import MEDIUM, note
from sae_lens_bipolar.errors import require_choice, require_number
from sae_lens_bipolar.files.atomic import read_json, write_json

HOLDS, DOES_NOT_HOLD, NOT_RUN = "holds", "does not hold", "not run at this scale"
UNDECIDED = "undecided"  # the interval holds both answers
VERDICTS = (HOLDS, DOES_NOT_HOLD, UNDECIDED, NOT_RUN)
CLAIMS = "results/claims.json"


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict.

    Raises:
        ConfigError: if the verdict is none of `VERDICTS`, or a count is negative.
    """

    claim: str  # what the paper says, in a sentence
    paper: str  # the paper's number, or "not given"
    ours: str  # what our result files give; "" where not run
    seeds: int  # seeds behind our number
    tokens: int  # training tokens (samples, for synthetic data) per SAE
    verdict: str  # one of VERDICTS
    estimate: float | None = None  # what the verdict is of; None where it is of no estimate
    low: float | None = None  # 95% interval; None with one seed
    high: float | None = None
    margin: float | None = None  # fixed in the configuration, that the interval is compared with
    examples: int | None = None  # test examples behind a benchmark score

    @property
    def interval(self) -> str:
        """`+0.0120 [+0.0080, +0.0160] against +0.0050`; empty where there is no estimate."""
        if self.estimate is None:
            return ""
        found = f"{self.estimate:+.4f}"
        if self.low is not None and self.high is not None:
            found += f" [{self.low:+.4f}, {self.high:+.4f}]"
        found += f" against {self.margin or 0:+.4f}"
        return found + (f", {self.examples} examples" if self.examples else "")

    def __post_init__(self) -> None:
        require_choice(self.verdict, VERDICTS, "verdict")
        require_number(self.seeds, "seeds", 0)
        require_number(self.tokens, "tokens", 0)


def verdict(holds: bool | None) -> str:
    """The verdict of a test on result files; None where there was nothing to test."""
    return NOT_RUN if holds is None else HOLDS if holds else DOES_NOT_HOLD


def write_claims(output: Path, claims: Sequence[Claim]) -> Path:
    """Write `output/results/claims.json` and return its path."""
    path = output / CLAIMS
    kept = [{k: v for k, v in asdict(claim).items() if v is not None} for claim in claims]
    write_json(path, kept)
    return path


def read_claims(path: Path) -> list[Claim]:
    """The claims of a verdict file."""
    return [Claim(**claim) for claim in read_json(path)]


def claims_table(claims: Sequence[Claim]) -> str:
    """A Markdown table, one row per claim; a column of intervals where a claim has one."""
    heads = ["claim", "paper", "here", "estimate [95%]", "seeds", "tokens", "verdict"]
    rows = [
        [
            *(c.claim, c.paper, c.ours or "-", c.interval or "-", c.seeds, f"{c.tokens:,}"),
            f"**{c.verdict}**",
        ]
        for c in claims
    ]
    if not any(c.interval for c in claims):
        for row in (heads, *rows):
            del row[3]
    shown = [[str(cell).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in shown]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]]) + "\n"


def claims_page(paths: Sequence[Path]) -> str:
    """The tables of verdict files, or of all verdict files below folders, under headings."""
    tables = [
        f"## {name}\n\n{note(name, file.parents[1])}{claims_table(read_claims(file))}"
        for path in paths
        for name, file in _verdict_files(path)
    ]
    return "\n".join(["# What the papers claim, and what the recipes found\n", *tables])


def _verdict_files(path: Path) -> list[tuple[str, Path]]:
    """(run directory as a heading names it, verdict file), of one file or all below a folder."""
    if not path.is_dir():
        return [(path.resolve().parents[1].name, path)]
    runs = [file.parents[1] for file in sorted(path.rglob(CLAIMS))]
    runs.sort(key=lambda run: MEDIUM not in run.parts)  # what is evidence comes first
    return [((r if r == path else r.relative_to(path)).as_posix(), r / CLAIMS) for r in runs]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("common.claims", __doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="claims.json files, or folders of them")
    print(claims_page(parse(parser, arguments).paths), end="")


if __name__ == "__main__":
    main()
