"""selection: keep or not, and for each sample that is not kept the first reason and all of them."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "selection",
    2,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("keep", pa.bool_(), "goes to the training shards"),
        column("reject_stage", pa.string(), "stage whose finding drops it; null = kept"),
        column("reject_reason", pa.string(), "the first finding; null = kept"),
        column(
            "reasons",
            pa.list_(pa.string()),
            "every finding against it, in order; empty = kept. Quotas and clusters speak of what reaches them only",
        ),
        column("diversity_cluster", pa.int32(), "cluster of its embedding; null where it was not clustered"),
        column(
            "weight",
            pa.float32(),
            "how often to draw it in training, beside the others; 1 without weights, null where it is not kept",
            range="0..",
        ),
    ],
)
