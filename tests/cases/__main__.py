"""The table of cases: what was done, what came of it before, and what comes of it now.

python -m tests.cases                             run every case, print the table
python -m tests.cases NAME ...                    run those
python -m tests.cases --tree DIR [--save NAME]    run them on another checkout of this package,
                                                  and keep what is seen as `before`
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

BEFORE = Path(__file__).with_name("before.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cases", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tree", type=Path, help="a checkout whose package is used")
    parser.add_argument("--save", metavar="COMMIT", help="keep what is seen, as of that commit")
    options = parser.parse_args()
    if options.tree:
        sys.path.insert(0, str(options.tree.resolve()))
    import sae_lens_bipolar.cli
    from tests.cases.place import Place
    from tests.cases.table import CASES

    print(f"package: {Path(str(sae_lens_bipolar.__file__)).parent}", file=sys.stderr)
    before = json.loads(BEFORE.read_text()) if BEFORE.exists() else {}
    seen, wrong = {}, 0
    print("| case | what is done | right | before | now | |\n|:--|:--|:--|:--|:--|:--|")
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root))
        for case in CASES:
            if options.names and case.name not in options.names:
                continue
            now, is_right = case.see(place)
            now = now.replace(root, "…").replace("|", "¦")
            seen[case.name] = {"seen": now, "right": is_right}
            wrong += not is_right
            was = before.get("cases", {}).get(case.name, {}).get("seen", "")
            cells = (case.name, case.what, case.right, was, now, "right" if is_right else "WRONG")
            print(f"| {' | '.join(cells)} |", flush=True)
    if options.save:
        kept = {"commit": options.save, "cases": {**before.get("cases", {}), **seen}}
        BEFORE.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(seen) - wrong} of {len(seen)} right", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
