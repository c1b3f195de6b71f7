"""Publishing a checkpoint: the card says what files say, terms are met, the snippet runs, and bytes arrive as sent."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from hf_mu2.data.build import corpus_info
from hf_mu2.hub.model_card import usage_snippet, write_model_card
from hf_mu2.hub.publish_model import check_snippet, plain_tokenizer_file, plan_model
from hf_mu2.hub.publish_space import plan_space
from hf_mu2.hub.terms import licence_problems, licence_warnings, terms_of
from hf_mu2.hub.upload import PublishError
from tests.hub.hub_server import HubServer
from tests.tiny import tiny_nifti

REPO = "tester/mu2-tiny"
NUMBER = 0.1234567


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with its card, as `publish model-card` writes it."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    write_model_card(copy, REPO, licence="apache-2.0", corpora=["phantom_ct"], **results(tmp_path))
    return copy


def results(folder: Path) -> dict:
    """Result files with numbers that occur nowhere else."""
    score = {"value": NUMBER, "low": 0.1112223, "high": 0.1998887}
    floor = {"macro_f1": {"value": 0.2223334}}
    evaluation = {
        "settings": {"studies": 321, "patients": 320, "labeler": "rules-2"},
        "signatures": {"macro_f1": "signature"},
        "scores": {"macro_f1": score},
        "floors": {"constant_normal": floor, "random": floor, "nearest_by_labels": floor},
        "labels": {
            "Emphysema": {"support": 9, "f1": 0.5, "f1_low": 0.4, "f1_high": 0.6, "f1_random": 0.1},
            "Lung nodule": {"support": 9, "f1": 0.2, "f1_low": 0.0, "f1_high": 0.4, "f1_random": 0.1},
        },
        "degeneracy": {"candidate": {"unique_share": 0.77, "mean_words": 66.4}},
    }
    run = {
        "recipe": {"stage": "adapt", "learning_rate": 4e-6, "corpus": "phantom_ct"},
        "command": ["hf-mu2", "train", str(folder / "recipe.yaml")],
        "hardware": "1 x Imaginary",
        "num_processes": 3,
        "steps": 4321,
        "num_train_rows": 8765,
    }
    dependence = {"image_dependence": 0.3334445, "image_dependence_se": 0.01, "studies": 55}
    paths = {}
    for name, content in (("evaluation", evaluation), ("run", run), ("dependence", dependence)):
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(content))
    return {
        "evaluations": {"PhantomCT, test": paths["evaluation"]},
        "runs": [paths["run"]],
        "dependence": paths["dependence"],
    }


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_number_of_the_card_comes_from_a_file_beside_it(folder):
    card = (folder / "README.md").read_text()
    for shown in (
        "0.123 [0.111, 0.200]",
        "0.222",
        "321 studies",
        "77%",
        "0.333 ± 0.020",
        "4,321 steps",
        "8,765 rows",
    ):
        assert shown in card, shown
    assert "1 x Imaginary" in card and str(folder.parent) not in card
    assert "Lung nodule" in card and "does not clear" in card  # 0.123 against the oracle's 0.222
    assert "Emphysema" not in card  # it is above its floor
    named = re.findall(r"`(results/[\w.]+)`", card)
    assert len(named) == 3 and all((folder / name).is_file() for name in named)


def test_a_card_needs_files_that_are_what_they_are_called(folder, tmp_path):
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "text.json").write_text('"recipe"')
    for options in (
        {"runs": [tmp_path / "text.json"]},
        {"evaluations": {"x": tmp_path / "none.json"}},
        {"dependence": tmp_path / "gone.json"},
    ):
        with pytest.raises(PublishError, match="comes from a result file"):
            write_model_card(folder, REPO, licence="mit", **options)
    with pytest.raises(PublishError, match="is of a checkpoint"):
        write_model_card(tmp_path, REPO, licence="mit")


def test_a_card_is_of_a_mu2_checkpoint_and_an_adapter_is_told_to_be_merged(folder, tmp_path):
    with pytest.raises(PublishError, match="hf-mu2 merge"):
        write_model_card(tmp_path, REPO, licence="mit")
    spoil(folder / "config.json", '"model_type": "mu2"', '"model_type": "qwen2_5_vl"')
    with pytest.raises(PublishError, match="qwen2_5_vl"):
        write_model_card(folder, REPO, licence="mit")


def test_scores_and_floors_that_were_not_computed_are_left_out(folder, tmp_path):
    path = results(tmp_path)["evaluations"]["PhantomCT, test"]
    found = json.loads(path.read_text())
    for floors, scores in (
        ({}, {}),
        ({"nearest_by_labels": {"macro_f1": {"value": None}}}, found["scores"]),
        (found["floors"], {"macro_f1": {"value": None}}),
    ):
        path.write_text(json.dumps(found | {"floors": floors, "scores": scores}))
        write_model_card(folder, REPO, licence="mit", evaluations={"T": path})
        assert "does not clear" not in (folder / "README.md").read_text()


def test_a_data_set_of_the_hub_goes_to_eval_results(folder, tmp_path):
    evaluations = {"org/phantom-ct": results(tmp_path)["evaluations"]["PhantomCT, test"]}
    write_model_card(folder, REPO, licence="mit", evaluations=evaluations)
    text = (folder / ".eval_results" / "hf_mu2.yaml").read_text()
    assert "org/phantom-ct" in text and "0.1235" in text and "0.1112" in text


def test_a_plan_lists_weights_code_processor_card_and_results_but_not_the_training(folder):
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"state")
    (folder / "trainer_state.json").write_text("{}")
    plan = plan_model(folder, REPO, run_snippet=False)
    names = {name for name, _ in plan.files}
    assert {
        "model.safetensors",
        "config.json",
        "processor_config.json",
        "generation_config.json",
        "README.md",
    } < names
    assert {"modeling_mu2.py", "processing_mu2.py", "results/run_1.json"} < names
    assert {"checkpoint-7/optimizer.pt", "trainer_state.json"} <= set(plan.left)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "README.md").unlink(), "no card"),
        (lambda f: spoil(f / "README.md", "license: apache-2.0\n", ""), "names no `license`"),
        (lambda f: (f / "modeling_mu2.py").unlink(), "names code in `modeling_mu2.py`"),
        (lambda f: (f / "generation_config.json").unlink(), "no `generation_config.json`"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled"),
        (lambda f: (f / "notes.txt").write_text("hf_" + "a" * 34), "Hugging Face token"),
        (lambda f: (f / "results" / "x.json").write_text('{"PatientName": "x"}'), "PatientName"),
        (lambda f: spoil(f / "README.md", "- phantom_ct", "- ct_rate"), "not for commercial use"),
        (lambda f: spoil(f / "results" / "run_1.json", "phantom_ct", "ct_rate"), "not for commercial use"),
        (
            lambda f: spoil(f / "config.json", '"_name_or_path": ""', '"_name_or_path": "google/gemma-2b"'),
            "`gemma`",
        ),
    ],
)
def test_what_must_not_be_published_is_refused(folder, harm, message):
    harm(folder)
    with pytest.raises(PublishError, match=message):
        plan_model(folder, REPO, run_snippet=False)


def problems(repo: str, licence: str, card: str = "", notice: str = "", bases=(), corpora=()) -> list[str]:
    infos = [corpus_info(name) for name in corpora]
    return list(licence_problems(repo, licence, card, notice, bases, infos))


def test_the_terms_of_llama_are_name_credit_notice_and_licence():
    bases = ["meta-llama/Llama-3.2-1B-Instruct"]
    assert len(problems("org/mu2-1b", "apache-2.0", bases=bases)) == 4
    notice = terms_of(bases[0]).notice
    assert problems("org/Llama-mu2-1b", "llama3.2", "Built with Llama", notice, bases) == []
    assert problems("org/mu2-1b", "apache-2.0", bases=["Qwen/Qwen3-1.7B"]) == []


def test_a_corpus_that_is_not_for_commerce_makes_a_model_that_is_not():
    assert problems("org/m", "apache-2.0", corpora=["ct_rate"])
    assert problems("org/m", "cc-by-nc-sa-4.0", corpora=["ct_rate"]) == []
    assert problems("org/m", "apache-2.0", corpora=["phantom_ct"]) == []
    assert any("derivatives" in warning for warning in licence_warnings([corpus_info("amos_mm")]))


def test_a_card_fulfils_the_terms_it_can(folder, tmp_path):
    base = "meta-llama/Llama-3.2-1B-Instruct"
    write_model_card(folder, "tester/Llama-mu2", licence="llama3.2", base_models=[base])
    assert plan_model(folder, "tester/Llama-mu2", run_snippet=False)
    assert "Built with Llama" in (folder / "README.md").read_text() and (folder / "NOTICE").is_file()


@pytest.mark.slow
def test_the_snippet_runs_without_this_package_and_says_what_is_wrong(folder):
    card = (folder / "README.md").read_text()
    assert check_snippet(folder, card, REPO) is None
    assert "does not run: NameError" in check_snippet(folder, card.replace("print(", "prnt("), REPO)
    assert "no Python block" in check_snippet(folder, card, "someone/else")


def test_the_snippet_is_what_the_card_holds():
    assert REPO in usage_snippet(REPO) and "hf_mu2" not in usage_snippet(REPO)


def test_what_training_leaves_in_tokenizer_files_is_not_sent(folder):
    clean = (folder / "tokenizer.json").read_bytes()
    fields = json.loads(clean)
    (folder / "tokenizer.json").write_text(json.dumps(fields | {"padding": {"strategy": "BatchLongest"}}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"is_local": True, "local_files_only": False})
    )
    plan = plan_model(folder, REPO, run_snippet=False)
    assert json.loads(plan.replaced["tokenizer.json"]) == fields
    assert json.loads(plan.replaced["tokenizer_config.json"]) == settings
    assert plain_tokenizer_file(folder / "config.json") is None


RELOAD = """
import json, sys
sys.modules["hf_mu2"] = None
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
def logits(source):
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    messages = processor.build_messages("ct.nii.gz")
    inputs = processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return type(model).__module__, model(**inputs).logits
(module, ours), (_, theirs) = map(logits, sys.argv[1:])
print(json.dumps([module, bool(torch.equal(ours, theirs)), float(ours.abs().sum())]))
"""


@pytest.mark.slow
def test_what_is_pushed_reloads_bit_identical_with_its_code(folder, tmp_path):
    nib.save(tiny_nifti(), tmp_path / "ct.nii.gz")
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "hf_home")
        command = [
            sys.executable,
            "-m",
            "hf_mu2.cli",
            "publish",
            "model",
            str(folder),
            REPO,
            "--json",
            "--no-snippet",
        ]
        sent = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert sent.returncode == 0, sent.stderr
        repo = hub.repos["model", REPO]
        for path in (path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            assert hashlib.sha256(repo.files[name]).digest() == hashlib.sha256(path.read_bytes()).digest(), (
                name
            )
        reload = [sys.executable, "-c", RELOAD, REPO, str(folder)]
        read = subprocess.run(
            reload, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert read.returncode == 0, read.stderr
        module, is_equal, total = json.loads(read.stdout.splitlines()[-1])
        assert module.startswith("transformers_modules") and is_equal and total > 0


def test_a_dry_run_of_the_embedded_checkpoint_lists_its_linked_code(cli):
    result = cli(
        "publish", "model", "mu2-phantom", "tester/mu2-phantom", "--dry-run", "--no-snippet", "--json"
    )
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    assert {"modeling_mu2.py", "model.safetensors", "README.md"} < {file["path"] for file in plan["files"]}
    assert "Nothing was sent" not in result.out


def test_a_space_holds_the_page_the_door_and_what_to_install(tmp_path):
    wheel = tmp_path / "hf_mu2-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    plan = plan_space(models=["org/mu2-1b"], wheel=wheel)
    assert {name for name, _ in plan.files} == {"README.md", "app.py", "requirements.txt", wheel.name}
    assert plan.replaced["requirements.txt"].decode().startswith(f"./{wheel.name}[")
    assert "- org/mu2-1b" in plan.card
    released = plan_space().replaced["requirements.txt"].decode()
    assert re.fullmatch(r"hf-mu2\[[\w,]+\]==[\w.]+\n", released)
    with pytest.raises(PublishError, match="no Hub id"):
        plan_space(models=[str(tmp_path)])
    with pytest.raises(PublishError, match="wheel of this package"):
        plan_space(wheel=tmp_path / "other.whl")
