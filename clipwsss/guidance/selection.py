"""How often each class's own name is the chosen word, as a table and a radar picture (POLE Fig. 4).

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
    """Shares of own names, in percent, in the choices that POLE's authors released; {} for other classes."""
    shares = json.loads((ASSETS / "prompts_voc12.json").read_text())["released_own_share"]
    return shares if set(classes) <= set(shares) else {}


def person_itself(tables: Sequence[tuple[dict, Truth | None]]) -> str:
    """A line that says how often "person" was chosen where the class's prompt name is another word (player)."""
    entries = [rows["person"] for table, _ in tables for rows in table.values() if "person" in rows]
    if not entries:
        return ""
    name = next(iter(entries[0]["similarity"]))
    if name == "person":
        return ""
    share = 100 * sum(entry["word"] == "person" for entry in entries) / len(entries)
    return (f'\nThe prompt name of the class person is "{name}"; the word "person" was chosen for {share:.1f} % '
            "(POLE's release: 27.1 %).\n")


def report(tables: Sequence[tuple[dict, Truth | None]], picture: Path) -> str:
    """Markdown of the shares of each class, of the choices of all tables together, and a `picture` (PNG)."""
    counts = count_choices(tables)
    if all(truth is not None for _, truth in tables):
        kinds = {"own": "own name", "true": "true sub-type", "other": "wrong word"}
        released = {}
    else:
        kinds = {"own": "own name", "other": "a synonym"}
        released = released_shares(counts)
    titles = [f"{title} %" for title in kinds.values()]
    if released:
        titles.append("own name %, POLE's release")
    lines = [f"| class | choices | {' | '.join(titles)} |", "|---|" + "---|" * (1 + len(titles))]
    for label, row in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        cells = [label, str(row.total())]
        cells += [f"{100 * row[kind] / row.total():.0f}" for kind in kinds]
        if released:
            cells.append(f"{released[label]:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    series = {}
    for kind, title in kinds.items():
        if kind != "other":
            series[title] = [row[kind] / row.total() for row in counts.values()]
    save(radar(list(counts), series), picture)
    return "\n".join(lines) + "\n" + person_itself(tables)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m clipwsss.guidance.selection",
                    description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path, nargs="+",
                        help="prompts.json of finished runs, counted together; the picture is written beside "
                        "the first")
    args = parser.parse_args(argv)
    out = args.prompts[0].with_name("own_names.png")
    print(f"{report([(read_choices(path), None) for path in args.prompts], out)}\npicture: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(main))
