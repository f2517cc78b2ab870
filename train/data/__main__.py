"""python -m train.data --root ROOT --check: read every shard and every entry of the index."""

import sys

from train.data.check import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
