"""plan: the train shards to write; the samples of each are in tables/plan/parts/."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "plan",
    1,
    [
        column("shard", pa.string(), "split, bucket and number; the samples' uids begin with that number"),
        column("split", pa.string(), "train or val"),
        column("rows", pa.int64(), "samples of the shard"),
        column("digest", pa.string(), "hash of what is written; a shard is written again only where it changes"),
    ],
)
