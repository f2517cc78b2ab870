"""scores: what the heads say of each embedding; null where there is none."""

import pyarrow as pa

from schemas.column import column, table, with_model

SCHEMA = table(
    "scores",
    2,
    [
        column("uid", pa.string(), "identity of the sample"),
        column(
            "aesthetic", pa.float32(), "aesthetic score", unit="points", range="1..10", direction="higher is better"
        ),
        column(
            "nsfw_prob",
            pa.float32(),
            "probability of unsafe content",
            unit="probability",
            range="0..1",
            direction="lower is safer",
        ),
        column(
            "watermark_prob",
            pa.float32(),
            "probability of a watermark",
            unit="probability",
            range="0..1",
            direction="lower is cleaner",
        ),
        column(
            "clip_similarity",
            pa.float32(),
            "cosine between image and cleaned caption",
            unit="cosine",
            range="-1..1",
            direction="higher fits better",
        ),
        column(
            "clip_similarity_best",
            pa.float32(),
            "greatest clip_similarity of the captions of the same image file in this fragment",
            unit="cosine",
            range="-1..1",
            direction="higher fits better",
        ),
        column(
            "clip_similarity_mean",
            pa.float32(),
            "mean clip_similarity of the captions of the same image file in this fragment",
            unit="cosine",
            range="-1..1",
            direction="higher fits better",
        ),
        column("blocklist_hit", pa.bool_(), "its hash is on a blocklist: never exported, and not scored"),
        column(
            "blocklist_match", pa.string(), "the listed hash that it is or comes near to, kind:hex; null without one"
        ),
    ],
)
"""Its three scores are always there, null without a head; a head says what its column is, and others come behind."""


SIMILARITIES = ("clip_similarity", "clip_similarity_best", "clip_similarity_mean")
"""Columns that come from the embeddings of the features table."""


def schema(scores: list[pa.Field], embedded: pa.Field) -> pa.Schema:
    """Return the table's schema with the columns of the heads; `embedded` names the model behind the similarities."""
    said = {key: (embedded.metadata or {}).get(key, b"").decode() for key in (b"model", b"revision")}
    found = with_model(SCHEMA, list(SIMILARITIES), said[b"model"], said[b"revision"])
    for field in scores:
        at = found.get_field_index(field.name)
        found = found.append(field) if at < 0 else found.set(at, field)
    return found
