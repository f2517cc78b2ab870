"""duplicates: for each sample that came in, the survivor that stands for it."""

import pyarrow as pa

from schemas.column import column, table

VERSION = 3

SCHEMA = table(
    "duplicates",
    VERSION,
    [
        column("uid", pa.string(), "identity of the sample"),
        column(
            "cluster_id",
            pa.string(),
            "uid of the cluster's survivor; for error images the uid of the best-ranked one with their bytes",
        ),
        column(
            "survivor_uid",
            pa.string(),
            "the survivor near this sample; itself where it survives or is of an evaluation set; null: none does; "
            "where an earlier corpus has the same sample, the survivor there has the same uid",
        ),
        column("kind", pa.string(), "exact, perceptual, semantic, error_image or eval_set; null where it survives"),
        column("distance", pa.float32(), "bits for perceptual, 1 - cosine for semantic, 0 for exact"),
        column("is_survivor", pa.bool_(), "kept by dedup"),
        column("won_by", pa.string(), "term of the ranking policy by which the survivor is ahead of this sample"),
        column(
            "left_out",
            pa.string(),
            "why it takes no part in perceptual matching: flat, text or pdq_quality; null where it does",
        ),
        column(
            "semantic_cluster",
            pa.int32(),
            "nearest cluster of its embedding; null for copies, error images, and where none was fitted",
        ),
    ],
)
