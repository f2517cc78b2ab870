import pytest

from curate.config import CurationConfig
from curate.config_file import read_settings


def read(*argv: str) -> CurationConfig:
    return read_settings(CurationConfig, argv, prog="x", description="")[0]


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        read(*argv)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_flags_go_over_the_file_over_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("root: here\ndedup: {radius_bits: 3}\ndumps: [{name: d, folder: f}]\n")
    config = read("--config", str(tmp_path / "c.yaml"), "--dedup.semantic_eps", "null")
    assert (config.root, config.dedup.radius_bits, config.dedup.semantic_eps) == ("here", 3, None)
    assert config.dumps[0].folder == "f"
    assert config.dedup.seed == 0


def test_a_misspelt_key_is_named(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("root: here\ndedup: {radius_bit: 3}\n")
    assert "radius_bit" in refused(capsys, "--config", str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("root: here\ndedpu: {radius_bits: 3}\n")
    assert "dedpu" in refused(capsys, "--config", str(tmp_path / "c.yaml"))


def test_an_impossible_value_names_field_value_and_fix(capsys):
    assert "dedup.radius_bits = 99: must be 0..16" in refused(capsys, "--root", "r", "--dedup.radius_bits", "99")
    assert "abc" in refused(capsys, "--root", "r", "--dedup.radius_bits", "abc")


def test_untrained_weights_must_be_allowed(capsys):
    assert "allow_untrained" in refused(capsys, "--root", "r", "--embed.clip.weights", "null")


def test_a_missing_file_and_no_file_are_told(tmp_path, capsys, monkeypatch):
    assert "nowhere.yaml" in refused(capsys, "--config", "nowhere.yaml")
    monkeypatch.chdir(tmp_path)
    assert "--init" in refused(capsys)


def test_the_default_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "darkroom.yaml").write_text("root: found\n")
    monkeypatch.chdir(tmp_path)
    assert read().root == "found"


def test_print_config_is_complete_and_reads_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        read("--root", "r", "--print_config", "--dumps", '[{"name": "d", "folder": "f"}]')
    assert ended.value.code == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert read("--config", str(tmp_path / "c.yaml")) == read(
        "--root", "r", "--dumps", '[{"name": "d", "folder": "f"}]'
    )


def test_two_sources_of_one_name_are_refused(capsys):
    dumps = '[{"name": "d", "folder": "f"}, {"name": "d", "folder": "g"}]'
    assert "name of its own" in refused(capsys, "--root", "r", "--dumps", dumps)
