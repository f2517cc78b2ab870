"""latents: where the posterior moments of each training sample and variant lie."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "latents",
    1,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("split", pa.string(), "train or val"),
        column("variant", pa.int8(), "0 as it is, 1 mirrored"),
        column("shard", pa.string(), "tar, relative to the root"),
        column("offset", pa.int64(), "first byte of the .npy in the shard", unit="bytes"),
        column("num_bytes", pa.int64(), "length of the .npy", unit="bytes"),
    ],
)
