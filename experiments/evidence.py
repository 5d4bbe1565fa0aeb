"""Re-run every analysis from the kept data and rewrite reports/evidence.md: make evidence.

Nothing is trained. Each folder's analyse.py reads its kept curves and writes its own results.json, results.md and
figures; the summary page is made from those files alone, so that no number on it is typed by hand.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from summary import page

from cptplan.files import write_text

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "reports" / "evidence.md"
LOG = logging.getLogger("evidence")


def folders(names: list[str]) -> list[Path]:
    """Folders with an analysis, in order; those named, when any is."""
    found = sorted(path.parent for path in HERE.glob("[0-9]*/analyse.py"))
    return [path for path in found if not names or path.name in names]


def main() -> None:
    """Analyse one folder after the other, then write the page."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", help="such as 06_fit_short_predict_long; default: all")
    parser.add_argument("--page-only", action="store_true", help="from the results that are there")
    options = parser.parse_args()
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for folder in [] if options.page_only else folders(options.folders):
        began = time.monotonic()
        subprocess.run([sys.executable, folder / "analyse.py"], check=True, env=environment)
        LOG.info("%s: %.0f s", folder.name, time.monotonic() - began)
    write_text(PAGE, page(HERE))
    LOG.info("wrote %s", PAGE)


if __name__ == "__main__":
    main()
