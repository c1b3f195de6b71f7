import json

import pytest


def assert_taught(result) -> None:
    """Bad input: exit code 2, nothing on stdout, one paragraph without a traceback on stderr."""
    assert result.code == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    message = result.err.strip().splitlines()[-1]
    assert message.startswith("Error: ") and message.endswith(".") and len(message) > 60


@pytest.mark.parametrize("command", ["report", "predict", "embed"])
def test_a_path_that_does_not_exist_is_bad_input(cli, tmp_path, command):
    out = () if command == "report" else ("--out", tmp_path / "out.npz")
    assert_taught(cli(command, tmp_path / "missing", *out))


def test_a_checkpoint_that_does_not_exist_is_bad_input(cli, tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(b"")
    result = cli("report", tmp_path / "ct.nii.gz", "--model", tmp_path / "no_model")
    assert result.code == 2 and "no_model" in result.err and "Traceback" not in result.err


def test_a_dataset_without_images_names_its_columns(cli, tmp_path):
    row = json.dumps({"file_name": "a.txt", "text": "no volume here"})
    (tmp_path / "metadata.jsonl").write_text(row + "\n")
    (tmp_path / "a.txt").write_text("text")
    assert cli("predict", tmp_path, "--out", tmp_path / "out.jsonl").code == 2


def test_an_unknown_option_is_bad_input(cli):
    assert cli("report", "ct.nii.gz", "--colour", "red").code == 2


def test_a_missing_package_is_a_failure_that_names_the_extra(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    result = cli("predict", tmp_path, "--out", tmp_path / "out.jsonl")
    assert result.code == 1 and 'pip install "hf_mu2[train]"' in result.err and "Traceback" not in result.err


def test_the_traceback_is_there_when_asked_for(monkeypatch, tmp_path):
    from hf_mu2.cli import main

    monkeypatch.setenv("HF_MU2_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["hf-mu2", "report", str(tmp_path / "missing")])
    with pytest.raises(ValueError, match="must be a file or folder that exists"):
        main()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.jsonl", None),
        ("empty.jsonl", b""),
        ("empty.json", b""),
        ("empty.parquet", b""),
        ("header.csv", b"study_id,candidate,reference\n"),
        ("latin.csv", "study_id,candidate,reference\na,Caf\xe9,x\n".encode("latin1")),
        ("latin.jsonl", '{"study_id": "a", "candidate": "Caf\xe9"}\n'.encode("latin1")),
        ("latin.json", '{"study_id": "a", "candidate": "Caf\xe9"}'.encode("latin1")),
        ("cut.jsonl", b'{"study_id": "a", "candidate": "a text that nobo'),
        ("list.jsonl", b"[1, 2]\n"),
        ("number.json", b"3"),
        ("text.json", b'"effusion"'),
        ("challenge.json", b'{"generated_reports": 3}'),
        ("short_row.csv", b"study_id,candidate,reference\na,effusion\n"),
        ("unquoted.csv", b"study_id,candidate,reference\na,effusion, nodule,effusion\n"),
        ("label.jsonl", b'{"study_id": "a", "candidate": "x", "reference": "y", "Cardiomegaly": "nobody"}'),
        ("label_list.jsonl", b'{"study_id": "a", "candidate": "x", "reference": "y", "Cardiomegaly": [1]}'),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "labels run"])
def test_a_damaged_table_of_reports_teaches_and_quotes_no_text(cli, tmp_path, command, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if command == "labels run" and name.startswith("label"):
        pytest.skip("the labeler does not read given labels")
    result = cli(*command.split(), tmp_path / name)
    assert_taught(result)
    assert "nobo" not in result.err and "Errno" not in result.err


@pytest.mark.parametrize(
    "name", ["reports.csv", "REPORTS.CSV", "reports.jsonl", "reports.json", "reports.txt"]
)
def test_a_byte_order_mark_and_capital_endings_do_not_matter(cli, tmp_path, name):
    row = '{"study_id": "a", "report": "Pleural effusion."}'
    text = {"csv": "study_id,report\r\na,Pleural effusion.\r\n", "jsonl": row, "json": f"[{row}]"}
    path = tmp_path / name
    path.write_text(text.get(path.suffix[1:].lower(), "Pleural effusion."), encoding="utf-8-sig")
    result = cli("labels", "run", path)
    assert result.code == 0 and result.out.endswith(": Pleural effusion\n")


@pytest.mark.parametrize("place", ["a_folder.csv", "a_file.txt/labels.csv"])
def test_an_output_that_cannot_be_written_is_bad_input(cli, tmp_path, place):
    (tmp_path / "a_folder.csv").mkdir()
    (tmp_path / "a_file.txt").write_text("Pleural effusion.")
    result = cli("labels", "run", tmp_path / "a_file.txt", "--out", tmp_path / place)
    assert_taught(result)
    assert "partial" not in result.err and sorted(path.name for path in tmp_path.iterdir()) == [
        "a_file.txt",
        "a_folder.csv",
    ]


def test_a_defect_of_the_package_is_named_without_its_words(cli, tmp_path, monkeypatch):
    def fails(*_args, **_options):
        raise KeyError("words of a report")

    monkeypatch.setattr("hf_mu2.scoring.label_files.label_file", fails)
    result = cli("labels", "run", tmp_path / "a.csv")
    assert result.code == 1 and "KeyError" in result.err and "words" not in result.err


def test_no_line_of_the_help_is_cut(cli):
    for group in ((), ("data",), ("labels",), ("publish",), ("confidence",), ("slices",)):
        assert "..." not in cli(*group, "--help").out.partition("Commands:")[2]


def test_chinese_reports_are_named_as_unread(cli, tmp_path, caplog):
    (tmp_path / "a.txt").write_text("左侧胸腔积液。")
    assert cli("labels", "run", tmp_path / "a.txt").code == 0
    assert "1 of 1 reports are in Chinese" in caplog.text


def test_json_has_null_where_a_number_has_no_value(capsys):
    from hf_mu2.cli.shared import print_json

    print_json({"scores": [float("nan"), (1.0, float("inf"))]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"scores": [None, [1.0, None]]}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--spacing", "0", "1", "1"),
        ("--spacing", "nan", "1", "1"),
        ("--split", "../elsewhere"),
        ("--split", ""),
        ("--benchmark", "tiny", "--n", "3"),
        ("--benchmark", "tiny", "--spacing", "9", "9", "9"),
        ("--pairs", "side", "--view", "preference"),
    ],
)
def test_phantoms_that_cannot_be_made_leave_no_folder(cli, tmp_path, arguments):
    assert_taught(cli("phantom", "--out", tmp_path / "folder", *arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option", ["validation_share=abc", "validation_share=[1]", "require_volumes=3", "root=x", "split"]
)
def test_an_option_of_the_wrong_kind_is_bad_input(cli, tmp_path, option):
    assert_taught(cli("data", "inspect", "ct_rate", "--root", tmp_path, "--option", option))


@pytest.mark.parametrize("manifest", ["{", "[]", '"text"'])
def test_a_folder_with_a_foreign_manifest_is_not_built_into(cli, tmp_path, manifest):
    from hf_mu2.data.phantom import write_phantoms

    root = write_phantoms(tmp_path / "phantoms", 1, spacing=(20, 20, 20))
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(manifest)
    assert_taught(cli("data", "build", "phantom_ct", "--root", root, "--out", out))
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


def test_a_file_that_is_no_cache_of_hashes_stays_as_it_is(cli, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("one line without an end")
    corpus = ("phantom_ct", "phantom_ct", "--root-a", tmp_path, "--root-b", tmp_path)
    assert_taught(cli("data", "overlap", *corpus, "--cache", notes))
    assert notes.read_text() == "one line without an end"


@pytest.mark.parametrize(
    "content",
    [b"", b"stage: [", b"- 1", b"hello", b"a:\n\tb: 1", b"stage: \xe9", b"stage: !!python/name:os.system"],
)
def test_a_recipe_that_is_no_table_of_fields_is_bad_input(cli, tmp_path, content):
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert_taught(cli("train", tmp_path / "recipe.yaml"))
