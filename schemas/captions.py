"""captions: the cleaned caption of each sample and the reason against it, if any."""

import pyarrow as pa

from schemas.column import column, table

SCHEMA = table(
    "captions",
    1,
    [
        column("uid", pa.string(), "identity of the sample"),
        column("caption_clean", pa.string(), "caption after repair; null where nothing is left"),
        column("language", pa.string(), "most likely language", unit="ISO 639-1"),
        column("language_prob", pa.float32(), "its probability", range="0..1"),
        column("num_words", pa.int32(), "whitespace-separated words", unit="words"),
        column("num_clip_tokens", pa.int32(), "CLIP tokens with both end marks, before truncation", unit="tokens"),
        column("caption_count", pa.int64(), "samples of the whole corpus with the same caption, case and spaces apart"),
        column("caption_reason", pa.string(), "first rule that the caption breaks; null = fine"),
    ],
)
