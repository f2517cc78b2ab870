"""python -m train.index --root ROOT [--weight SQL] [--resolution_px 1024]: index the shards of a root for training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from curate.command_line import DONE, told_in_one_line
from curate.config_help import About, PlainParser
from train.index.build import DEFAULT_WEIGHT, IndexOf, alone, build_index, index_folder, splits_of
from train.index.reader import open_index

PROG = "train.index"
ABOUT = About(
    command="python -m train.index",
    example="python -m train.index --root runs/mine --weight 'weight * 2'",
    reads="tables/shards and tables/latents under the root, or the tars themselves where there are none",
    writes="<root>/index/<split>/, or --index for a remote root",
)


def main(argv: Sequence[str]) -> int:
    """Build the index of every split."""
    parser = PlainParser(PROG, "Index the shards of a root for training; train.run does it by itself.", ABOUT)
    parser.add_argument(
        "--root", required=True, help="folder (fsspec URL) with shards/ and, from the curation, tables/"
    )
    parser.add_argument("--index", help="local folder for the index (default: <root>/index)")
    parser.add_argument("--weight", default=DEFAULT_WEIGHT, help="sampling weight as SQL on the shards table's columns")
    parser.add_argument("--resolution_px", type=int, default=1024, help="aspect buckets of pictures that name none")
    parser.add_argument("--json", action="store_true", help="print one JSON object a split")
    args = parser.parse_args(argv)
    with told_in_one_line(PROG, "nothing is half done: run it again"):
        for split in splits_of(args.root):
            folder = index_folder(args.root, args.index, split)
            what = IndexOf(root=args.root, split=split, weight=args.weight, resolution_px=args.resolution_px)
            with alone(folder, lambda line: print(line, file=sys.stderr)):
                build_index(what, folder)
            index = open_index(folder)
            said = {"folder": str(folder), "rows": len(index), "groups": len(index.groups), "left_out": index.left_out}
            told = "{folder}: {rows} rows in {groups} groups, {left_out} of weight 0 left out".format(**said)
            print(json.dumps(said) if args.json else told)
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
