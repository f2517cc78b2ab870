"""selection: keep or not, and exactly one reason for each sample that is not kept."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "selection",
    1,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("keep", pa.bool_(), "goes to the training shards"),
        column("reject_stage", pa.string(), "stage whose finding drops it; null = kept"),
        column("reject_reason", pa.string(), "the finding; null = kept"),
        column("diversity_cluster", pa.int32(), "cluster of its embedding; null where it was not clustered"),
        column("weight", pa.float32(), "sampling weight in training", range="0.."),
    ],
)
