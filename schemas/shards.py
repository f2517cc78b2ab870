"""shards: where each training sample lies and what the networks are conditioned on."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "shards",
    2,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("source", pa.string(), "name of the source in the configuration"),
        column("split", pa.string(), "train or val"),
        column("shard", pa.string(), "tar, relative to the root"),
        column("offset", pa.int64(), "first byte of the image in the shard", unit="bytes"),
        column("num_bytes", pa.int64(), "length of the image", unit="bytes"),
        column("bucket_height_px", pa.int32(), "height of the exported picture", unit="px"),
        column("bucket_width_px", pa.int32(), "width of the exported picture", unit="px"),
        column("original_height_px", pa.int32(), "height before resizing", unit="px"),
        column("original_width_px", pa.int32(), "width before resizing", unit="px"),
        column("crop_top_px", pa.int32(), "rows cut off at the top after resizing", unit="px"),
        column("crop_left_px", pa.int32(), "columns cut off at the left after resizing", unit="px"),
        column("aesthetic", pa.float32(), "aesthetic score", range="1..10", direction="higher is better"),
        column("weight", pa.float32(), "how often to draw it, beside the others", range="0.."),
        column("caption", pa.string(), "cleaned caption"),
        column("format", pa.string(), "jpeg, webp or png"),
        column("is_original", pa.bool_(), "the image is the original file, byte by byte"),
        column("faces_blurred", pa.int32(), "faces that were found and blurred; null where none were looked for"),
    ],
)
"""Version 2 added weight, format, is_original and faces_blurred."""
