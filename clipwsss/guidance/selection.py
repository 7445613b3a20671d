"""How often each class's own name is the selected word, as a table and a radar picture (POLE Fig. 4).

    python -m clipwsss.guidance.selection runs/voc12/train_prompt/prompts.json
"""
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..datasets import build_dataset
from ..errors import run_script
from ..flags import Parser
from ..pictures import save
from ..report.charts import radar
from .choices import Truth, count_choices, read_choices
from .words import ASSETS


def toy_truth(root: Path, split: str) -> Truth:
    """The sub-types in every image of a toy world."""
    dataset = build_dataset("toy", root, split)
    return {name: dataset.subtypes(index) for index, name in enumerate(dataset.names)}


def released_shares(classes: Iterable[str]) -> dict[str, float]:
    """Own-name shares in percent of the selections that POLE's authors released, if the classes are VOC's."""
    shares = json.loads((ASSETS / "prompts_voc12.json").read_text())["released_own_share"]
    return shares if set(classes) <= set(shares) else {}


def person_itself(tables: Sequence[tuple[dict, Truth | None]]) -> str:
    """A line on the class person where its prompt name is another word (player): how often it is "person"."""
    entries = [rows["person"] for table, _ in tables for rows in table.values() if "person" in rows]
    name = next(iter(entries[0]["similarity"])) if entries else "person"
    if name == "person":
        return ""
    share = 100 * sum(entry["word"] == "person" for entry in entries) / len(entries)
    return f'\nPerson goes by "{name}"; "person" itself was chosen {share:.1f} % (POLE\'s release: 27.1 %).\n'


def report(tables: Sequence[tuple[dict, Truth | None]], picture: Path) -> str:
    """Markdown of the shares per class (choices of all tables together); draws them into `picture` (PNG)."""
    counts = count_choices(tables)
    kinds = {"own": "own name", "other": "a synonym"}
    if all(truth is not None for _, truth in tables):
        kinds = {"own": "own name", "true": "true sub-type", "other": "wrong word"}
    released = {} if "true" in kinds else released_shares(counts)
    titles = [f"{title} %" for title in kinds.values()] + ["own name %, POLE's release"] * bool(released)
    lines = [f"| class | choices | {' | '.join(titles)} |", "|---|" + "---|" * (1 + len(titles))]
    for label, row in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        shares = " | ".join(f"{100 * row[kind] / row.total():.0f}" for kind in kinds)
        lines.append(f"| {label} | {row.total()} | {shares} |"
                     + (f" {released[label]:.1f} |" if released else ""))
    series = {title: [row[kind] / row.total() for row in counts.values()]
              for kind, title in kinds.items() if kind != "other"}
    save(radar(list(counts), series), picture)
    return "\n".join(lines) + "\n" + person_itself(tables)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m clipwsss.guidance.selection",
                    description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path, nargs="+",
                        help="prompts.json of finished runs, together; the picture goes beside the first")
    args = parser.parse_args(argv)
    out = args.prompts[0].with_name("own_names.png")
    print(f"{report([(read_choices(path), None) for path in args.prompts], out)}\npicture: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
