"""``python results/report show DIR`` says what the runs below a folder found;
``python results/report gallery`` draws every figure and fills every page from the committed runs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report import pages
from skillstack_helpers.errors import SkillStackError


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python results/report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="what the runs below a folder found")
    command.add_argument("folder", type=Path)
    commands.add_parser("gallery", help="figures and pages from the committed runs")
    arguments = parser.parse_args(argv)
    try:
        print(pages.show(arguments.folder) if arguments.command == "show" else pages.gallery())
    except SkillStackError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
