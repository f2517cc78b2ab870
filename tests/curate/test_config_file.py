import pytest

from curate.config import CurationConfig
from curate.config_file import read_settings
from curate.config_help import About
from curate.config_keys import all_keys


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
    monkeypatch.chdir(tmp_path)
    fix = "give a YAML file of settings; python pipelines/run.py --init writes one to start from"
    assert (
        refused(capsys, "--config", "nowhere.yaml") == f"x: --config nowhere.yaml: no such file or directory: {fix}\n"
    )
    assert refused(capsys, "--config", ".") == f"x: --config .: is a directory: {fix}\n"
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


def test_later_files_go_over_earlier_ones_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("root: here\ndedup: {radius_bits: 3, seed: 1}\nweb: [{name: w, url_list: l}]\n")
    (tmp_path / "b.yaml").write_text("dedup: {seed: 2}\nweb: []\n")
    config = read("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--dedup.turns", "all")
    assert (config.root, config.dedup.radius_bits, config.dedup.seed, config.dedup.turns) == ("here", 3, 2, "all")
    assert config.web == ()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dedup.radius", "3"), "unknown flag --dedup.radius: did you mean --dedup.radius_bits?"),
        (("--min_side_px", "3"), "unknown flag --min_side_px: did you mean --selection.min_side_px?"),
        (("--radus", "3"), "unknown flag --radus: did you mean --dedup.radius_bits?"),
        (("--slection.min_side_px=3",), "unknown flag --slection.min_side_px: did you mean --selection.min_side_px?"),
        (("--confg", "c.yaml"), "unknown flag --confg: did you mean --config?"),
        (("--selection.diversity.max_per_clster", "3"), "did you mean --selection.diversity.max_per_cluster?"),
        (
            ("--selection.diversity.x", "3"),
            "--selection.diversity.x; known here: selection.diversity.act,",
        ),
        (("--dedup.radius_bits", "abc"), "dedup.radius_bits = abc: must be a whole number"),
        (("--selection.min_aesthetic", "abc"), "selection.min_aesthetic = abc: must be a number or null"),
        (("--embed.precision", "fp8"), "embed.precision = fp8: must be one of 'bf16', 'fp32'"),
        (("--dumps", '[{"folder": "a"}]'), "dumps: name is missing"),
        (("--dumps", '[{"name": "a", "foldr": "b"}]'), "dumps: unknown key foldr"),
    ],
)
def test_a_wrong_flag_is_one_short_line(capsys, words, told):
    said = refused(capsys, "--root", "r", *words)
    assert told in said
    assert len(said) < 250


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dedup: {radius: 3}", "unknown key dedup.radius: did you mean dedup.radius_bits?"),
        ("web: [{name: w, url_lst: l}]", "unknown key web[w].url_lst: did you mean web[w].url_list?"),
        ("selection: {diversity: {atc: drop}}", "unknown key selection.diversity.atc: did you mean"),
        ("min_side_px: 3", "unknown key min_side_px: did you mean selection.min_side_px?"),
        ("dedup: {radius_bits: abc}", "dedup.radius_bits = abc: must be a whole number"),
        ("dedup: [", "line 3: no valid YAML"),
    ],
)
def test_a_wrong_file_is_one_short_line_with_its_name(tmp_path, capsys, text, told):
    (tmp_path / "c.yaml").write_text(f"root: here\n{text}\n")
    said = refused(capsys, "--config", str(tmp_path / "c.yaml"))
    assert "c.yaml" in said and told in said
    assert len(said.replace(str(tmp_path), "")) < 250


def test_help_is_short_and_help_all_has_every_setting(capsys):
    about = About(
        command="python x.py", example="python x.py --root r", reads="tables/a", writes="tables/b", sections=("dedup",)
    )
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            read_settings(CurationConfig, [word], prog="x", description="What it is for.", about=about)
        assert ended.value.code == 0
        shown[word] = capsys.readouterr().out
    keys = set(all_keys(CurationConfig))
    for key in ("dedup.radius_bits", "selection.min_side_px", "ray.num_cpus"):
        assert key in keys and f"--{key} " in shown["--help-all"]
    assert "--dedup.radius_bits " in shown["--help"] and "--selection.min_side_px " not in shown["--help"]
    assert "--selection.* " in shown["--help"]
    for told in ("What it is for.", "reads    tables/a", "writes   tables/b", "example  python x.py --root r", "130"):
        assert told in shown["--help"]
    assert shown["--help"].count("\n") < 120
    assert shown["--help-all"].count("\n") > 3 * shown["--help"].count("\n")
