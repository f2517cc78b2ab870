"""The command: python -m curate.weights list, fetch NAME... [--pin], verify [NAME...]."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from curate.bad_input import BadInput
from curate.command_line import BAD, DONE, EXIT_CODES, FAILED, INTERRUPTED
from curate.weights.download import fetch, size_of
from curate.weights.registry import (
    MISSING,
    UnknownWeights,
    default_weights_dir,
    find,
    known_sha256,
    problem_of,
    registry,
)

ABOUT = """List, fetch and verify model weights.

reads    infra/weights.yaml: address, checksum and licence of every model
writes   $DARKROOM_WEIGHTS, or the folder darkroom/weights in the user's cache
example  python -m curate.weights fetch clip_vit_l14_openai aesthetic_v2"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; what the user can mend is one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (BadInput, OSError) as error:
        if args.debug:
            raise
        print(f"curate.weights: {error}", file=sys.stderr)
        return BAD if isinstance(error, UnknownWeights) else FAILED
    except KeyboardInterrupt:
        print("curate.weights: stopped; whole files are kept: run the same command to go on", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument(
        "--weights-dir", type=Path, help="folder of the files (default: $DARKROOM_WEIGHTS, or the user's cache)"
    )
    places.add_argument("--debug", action="store_true", help="show the traceback of an error, not only its line")
    places.add_argument("--registry", type=Path, help="registry file (default: infra/weights.yaml)")
    parser = argparse.ArgumentParser(
        prog="python -m curate.weights",
        description=ABOUT,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", parents=[places], help="print every entry and whether it is here")
    listing.add_argument("--json", action="store_true", help="print a JSON list instead")
    listing.set_defaults(run=_list)
    fetching = commands.add_parser("fetch", parents=[places], help="download and verify entries")
    fetching.add_argument("names", nargs="+", metavar="NAME")
    fetching.add_argument("--pin", action="store_true", help="accept and record the sum of an entry that has none")
    fetching.set_defaults(run=_fetch)
    verifying = commands.add_parser("verify", parents=[places], help="hash the files that are here")
    verifying.add_argument("names", nargs="*", metavar="NAME", help="these must be here (default: whatever is here)")
    verifying.set_defaults(run=_verify)
    return parser


def _list(args: argparse.Namespace) -> int:
    weights_dir = args.weights_dir or default_weights_dir()
    found = registry(args.registry).values()
    if args.json:
        said = [dataclasses.asdict(one) | {"here": (weights_dir / one.file_name).is_file()} for one in found]
        print(json.dumps(said))
        return DONE
    for weight in found:
        here = "here" if (weights_dir / weight.file_name).is_file() else "-"
        checked = "sha256" if known_sha256(weight, weights_dir) else "unpinned"
        size = size_of(weight.num_bytes)
        print(f"{weight.name:<26}{weight.kind:<11}{here:<6}{checked:<10}{size:<11}{weight.licence:<13}{weight.purpose}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    weights = registry(args.registry)
    chosen = [find(weights, name) for name in args.names]
    for weight in chosen:
        print(f"{weight.name}: {fetch(weight, args.weights_dir or default_weights_dir(), pin=args.pin)}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Print one line for each entry; 1 where a file is wrong, unpinned, or named and missing."""
    weights_dir = args.weights_dir or default_weights_dir()
    weights = registry(args.registry)
    chosen = [find(weights, name) for name in args.names] or list(weights.values())
    problems = {weight.name: problem_of(weight, weights_dir) for weight in chosen}
    for weight in chosen:
        print(f"{weight.name:<26}{problems[weight.name] or 'ok'}")
    tolerated = {None} if args.names else {None, MISSING}
    if all(problem == MISSING for problem in problems.values()):
        print(f"curate.weights: nothing to verify in {weights_dir}", file=sys.stderr)
        return 1
    return 0 if set(problems.values()) <= tolerated else 1


if __name__ == "__main__":
    sys.exit(main())
