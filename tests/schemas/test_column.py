import pyarrow as pa
import pytest

from schemas import captions, duplicates, features, latents, samples, scores, selection, shards
from schemas.column import column, conform, table, with_model

ALL = {
    "samples": samples.SCHEMA,
    "features": features.schema(8),
    "captions": captions.SCHEMA,
    "scores": scores.SCHEMA,
    "duplicates": duplicates.SCHEMA,
    "selection": selection.SCHEMA,
    "shards": shards.SCHEMA,
    "latents": latents.SCHEMA,
}


@pytest.mark.parametrize("name", ALL)
def test_each_table_says_its_name_version_and_meanings(name):
    schema = ALL[name]
    assert schema.metadata[b"darkroom_table"] == name.encode()
    assert int(schema.metadata[b"darkroom_version"]) >= 1
    assert all(field.metadata[b"meaning"] for field in schema)


def test_each_score_says_range_and_direction():
    for field in scores.SCHEMA:
        if pa.types.is_floating(field.type):
            assert field.metadata[b"range"] and field.metadata[b"direction"], field.name


def test_conform_orders_casts_and_keeps_what_is_more():
    schema = table("t", 1, [column("a", pa.int8(), "x"), column("b", pa.string(), "y")])
    rows = conform(pa.table({"more": [1.5], "b": ["q"], "a": [3]}), schema)
    assert rows.column_names == ["a", "b", "more"]
    assert rows.schema.field("a").type == pa.int8()
    with pytest.raises(KeyError):
        conform(pa.table({"a": [1]}), schema)


def test_with_model_says_model_and_revision():
    schema = with_model(scores.SCHEMA, ["aesthetic"], "head", "rev")
    assert schema.field("aesthetic").metadata[b"revision"] == b"rev"
    assert schema.field("aesthetic").metadata[b"range"] == b"1..10"
