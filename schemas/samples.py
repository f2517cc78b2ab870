"""samples: one row for each image-text pair that a source offered, whether it came in or not."""

import pyarrow as pa

from schemas.column import column, table

ANSWER = [
    column("http_status", pa.int16(), "status of the last answer; null without one"),
    column("final_url", pa.string(), "where redirects led; null without any"),
    column("robots_txt", pa.string(), "allowed or disallowed; none without robots.txt; null unread"),
    column("robots_usage", pa.string(), "Content-Usage of robots.txt: refused or not; none without; null unread"),
    column("tdmrep", pa.string(), "1 reserved, 0 not reserved; none without tdmrep.json; null unread"),
    column("x_robots_tag", pa.string(), "X-Robots-Tag as it came; null without one"),
    column("tdm_reservation", pa.string(), "tdm-reservation as it came; null without one"),
    column("content_usage", pa.string(), "Content-Usage as it came; null without one"),
    column("c2pa_training_mining", pa.string(), "what C2PA and CAWG assertions say of each use; null without any"),
]
"""What the web said of a picture."""

SCHEMA = table(
    "samples",
    3,
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
        column("extra", pa.string(), "columns of the URL list that the settings keep, as one JSON object"),
        column("status", pa.string(), "ok, or the class of what went wrong on the way in"),
        column("error", pa.string(), "what went wrong, in words"),
        column("runs", pa.int16(), "runs that asked for the image; null in a dump", unit="runs"),
        *ANSWER,
    ],
)
