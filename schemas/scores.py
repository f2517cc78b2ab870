"""scores: what the heads say of each embedding; null where there is none."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "scores",
    1,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("aesthetic", pa.float32(), "aesthetic score", range="1..10", direction="higher is better"),
        column("nsfw_prob", pa.float32(), "probability of unsafe content", range="0..1", direction="lower is safer"),
        column(
            "watermark_prob", pa.float32(), "probability of a watermark", range="0..1", direction="lower is cleaner"
        ),
        column(
            "clip_similarity",
            pa.float32(),
            "cosine between image and cleaned caption",
            range="-1..1",
            direction="higher fits better",
        ),
        column("blocklist_hit", pa.bool_(), "its hash is on a blocklist: never exported"),
    ],
)
