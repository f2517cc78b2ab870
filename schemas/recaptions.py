"""recaptions: captions that a vision-language model wrote; the samples table keeps those that the sources gave."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "recaptions",
    1,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("caption_generated", pa.string(), "new caption; null where the mix gives none, or nothing decodes"),
    ],
)
