"""`python -m executor.corpus --spec corpus.json`: the process that makes token shards out of corpora."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from cptplan.errors import CptplanError
from cptplan.files import read_json
from executor.corpus.prepare import prepare
from executor.corpus.spec import CorpusSpec
from executor.run_lock import only_one


def main(arguments: list[str] | None = None) -> int:
    """Prepare the corpora of a spec; returns the exit code, having said on stderr what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m executor.corpus", description="From documents to token shards.")
    parser.add_argument("--spec", type=Path, required=True, help="corpus.json")
    path = parser.parse_args(arguments).spec
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        spec = CorpusSpec.parse(read_json(path), str(path))
        with only_one(Path(spec.out) / ".lock"):
            prepare(spec)
    except CptplanError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(
            "error: interrupted; nothing half written counts.\nhint: run the same command again, which goes on\n"
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
