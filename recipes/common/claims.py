"""What a paper claims beside what the result files of a recipe give: `results/claims.json`.

    python -m recipes.common.claims recipes/results

prints every verdict file below that folder as Markdown tables.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recipes.common.arguments import command, parse
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
    write_json(path, [asdict(claim) for claim in claims])
    return path


def read_claims(path: Path) -> list[Claim]:
    """The claims of a verdict file."""
    return [Claim(**claim) for claim in read_json(path)]


def claims_table(claims: Sequence[Claim]) -> str:
    """A Markdown table, one row per claim."""
    lines = [
        "| claim | paper | here | seeds | tokens | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for c in claims:
        cells = (c.claim, c.paper, c.ours or "-", c.seeds, f"{c.tokens:,}", f"**{c.verdict}**")
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def claims_page(paths: Sequence[Path]) -> str:
    """The tables of verdict files, or of all verdict files below folders, under headings."""
    tables = [
        f"## {name}\n\n{claims_table(read_claims(file))}"
        for path in paths
        for name, file in _verdict_files(path)
    ]
    return "\n".join(["# What the papers claim, and what the recipes found\n", *tables])


def _verdict_files(path: Path) -> list[tuple[str, Path]]:
    """(run directory as a heading names it, verdict file), of one file or all below a folder."""
    if not path.is_dir():
        return [(path.resolve().parents[1].name, path)]
    runs = [file.parents[1] for file in sorted(path.rglob(CLAIMS))]
    return [((r if r == path else r.relative_to(path)).as_posix(), r / CLAIMS) for r in runs]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("common.claims", __doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="claims.json files, or folders of them")
    print(claims_page(parse(parser, arguments).paths), end="")


if __name__ == "__main__":
    main()
