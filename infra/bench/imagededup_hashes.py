"""imagededup's PHash of each file, run with the peers' Python: file names in, hashes out, both as JSON lists.

    echo '["a.jpg"]' | .venv-peers/bin/python infra/bench/imagededup_hashes.py

A hash is 16 hexadecimal digits; null where imagededup does not open the file.
"""

import json
import sys

from imagededup.methods import PHash


def main() -> None:
    hasher = PHash(verbose=False)
    print(json.dumps([hasher.encode_image(image_file=path) for path in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
