"""features: what one decode of each image measures; null where the image did not decode."""

import pyarrow as pa

from schemas.column import column, table


def schema(embedding_dim: int) -> pa.Schema:
    """Return the table's schema for a model with that embedding width."""
    return table(
        "features",
        4,
        [
            column("uid", pa.string(), "identity of the sample"),
            column("status", pa.string(), "ok, or the class of what went wrong while decoding"),
            column("error", pa.string(), "what went wrong, in words"),
            column("width_px", pa.int32(), "true width, after EXIF orientation", unit="px"),
            column("height_px", pa.int32(), "true height, after EXIF orientation", unit="px"),
            column(
                "phash64", pa.uint64(), "perceptual hash, imagehash's definition, first bit highest", unit="64 bits"
            ),
            column(
                "phash64_turned",
                pa.list_(pa.uint64(), 7),
                "phash64 of the picture flipped left-right, flipped top-bottom, turned by 180 degrees, transposed, "
                "anti-transposed, turned by 90 and by 270 degrees counter-clockwise, in this order",
                unit="64 bits each",
            ),
            column("pdq256", pa.binary(32), "PDQ perceptual hash", unit="256 bits"),
            column(
                "pdq256_turned",
                pa.binary(7 * 32),
                "PDQ of the picture flipped and turned, seven hashes in the order of phash64_turned",
                unit="7 x 256 bits",
            ),
            column("pdq_quality", pa.int32(), "PDQ's own quality; 49 and less is not matched", range="0..100"),
            column(
                "entropy_bits",
                pa.float32(),
                "entropy of the grey histogram",
                unit="bits",
                range="0..8",
                direction="higher is richer",
            ),
            column(
                "sharpness",
                pa.float32(),
                "variance of the Laplacian of the 256 px grey picture",
                range="0..",
                direction="higher is sharper",
            ),
            column(
                "text_share",
                pa.float32(),
                "share of what stands out from a plain ground that is lines of letters; 0 without a plain ground",
                range="0..1",
                direction="1 is nothing but text",
            ),
            column(
                "luma_mean",
                pa.float32(),
                "mean luma of the 256 px grey picture",
                range="0..255",
                direction="higher is brighter",
            ),
            column(
                "shadows_clipped",
                pa.float32(),
                "share of the 256 px grey picture with luma 5 and less",
                range="0..1",
                direction="higher has more black without detail",
            ),
            column(
                "highlights_clipped",
                pa.float32(),
                "share of the 256 px grey picture with luma 250 and more",
                range="0..1",
                direction="higher has more white without detail",
            ),
            column(
                "jpeg_quality",
                pa.int32(),
                "libjpeg quality whose luminance table is nearest to the file's; null for other formats",
                range="1..100",
                direction="higher is less compressed",
            ),
            column("embedding", pa.list_(pa.float16(), embedding_dim), "L2-normalised image embedding"),
            column(
                "clip_similarity",
                pa.float32(),
                "cosine between image and cleaned caption; null without caption",
                range="-1..1",
                direction="higher fits better",
            ),
        ],
    )
