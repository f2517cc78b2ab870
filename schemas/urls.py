"""urls: one row for each chunk of a crawl's distinct (URL, caption) rows; the rows are in raw/urls/."""

import pyarrow as pa

from schemas.column import column, table

VERSION = 2
SCHEMA = table(
    "urls",
    VERSION,
    [
        column("source", pa.string(), "name of the source in the configuration"),
        column("chunk", pa.string(), "name of the chunk, and of its fragments in all later tables"),
        column("rows", pa.int64(), "distinct rows in the chunk", unit="rows"),
        column("content", pa.string(), "digest of the rows as they were listed, those that were taken down included"),
    ],
)
