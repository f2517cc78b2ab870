"""samples: one row for each image-text pair that a source offered, whether it came in or not."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "samples",
    1,
    [
        column("uid", pa.string(), "identity: hash of source, key or URL, and caption", unit="32 hex characters"),
        column("source", pa.string(), "name of the source in the configuration"),
        column("url", pa.string(), "where the image came from: URL of a crawl, path inside a dump"),
        column("caption", pa.string(), "caption as the source gave it; null where it gave none"),
        column("shard", pa.string(), "raw tar with the original bytes, relative to the root; null without bytes"),
        column("offset", pa.int64(), "first byte of the image in the shard", unit="bytes"),
        column("num_bytes", pa.int64(), "length of the image file", unit="bytes"),
        column("sha256", pa.string(), "hash of the original bytes", unit="hex"),
        column("format", pa.string(), "file format read from the header, such as JPEG; null where none is known"),
        column("width_px", pa.int32(), "width in the header, before EXIF orientation", unit="px"),
        column("height_px", pa.int32(), "height in the header, before EXIF orientation", unit="px"),
        column("license", pa.string(), "licence as the source gave it"),
        column("status", pa.string(), "ok, or the class of what went wrong on the way in"),
        column("error", pa.string(), "what went wrong, in words"),
    ],
)
