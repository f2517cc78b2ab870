"""fetches: one row for each listed row that a run of ingest dealt with, the log of a crawl."""

import pyarrow as pa

from schemas.column import column, table
from schemas.samples import ANSWER

SCHEMA = table(
    "fetches",
    2,
    [
        column("uid", pa.string(), "key"),
        column("host", pa.string(), "host of the URL, with the port where it is an unusual one"),
        column("status", pa.string(), "ok, or the class of what went wrong"),
        column("error", pa.string(), "what went wrong, in words"),
        *ANSWER,
        column("retry_after_s", pa.float64(), "pause that the host asked for; null without one", unit="s"),
        column("requests", pa.int16(), "attempts of this run; 0 where the row was not asked for"),
        column("seconds", pa.float32(), "time of all attempts and pauses", unit="s"),
        column("fetched_at", pa.timestamp("us", tz="UTC"), "start of the last attempt"),
        column("counted", pa.bool_(), "whether the run counts against the retry policy; not under an alarm"),
        column("shard", pa.string(), "raw tar with the original bytes, relative to the root; null without bytes"),
        column("offset", pa.int64(), "first byte of the image in the shard", unit="bytes"),
        column("num_bytes", pa.int64(), "length of the image file", unit="bytes"),
        column("sha256", pa.string(), "hash of the original bytes", unit="hex"),
        column("format", pa.string(), "file format read from the header, such as JPEG; null where none is known"),
        column("width_px", pa.int32(), "width in the header, before EXIF orientation", unit="px"),
        column("height_px", pa.int32(), "height in the header, before EXIF orientation", unit="px"),
    ],
)
