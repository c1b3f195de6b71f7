"""Metrics with models of their own: BERTScore with a tiny model, the others with a stand-in for radeval."""

import runpy
import sys
import types

import pytest
import torch

from hf_mu2.scoring import model_metrics
from hf_mu2.scoring.model_metrics import (
    CRIMSON_JUDGE,
    bertscore,
    crimson,
    radbert_ct_f1,
    radgraph_f1,
    ratescore,
)

REFERENCES = ["No pleural effusion.", "Nodule in the left lung."]
CANDIDATES = ["Pleural effusion.", "Nodule in the left lung."]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT whose tokens are words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "no",
        "pleural",
        "effusion",
        "nodule",
        "left",
        "lung",
        ".",
    ]
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(path)
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(path)
    return str(path)


def test_bertscore_is_one_for_equal_texts_and_records_model_and_layer(encoder):
    pytest.importorskip("bert_score")
    result = bertscore(REFERENCES, CANDIDATES, model=encoder, num_layers=2, device="cpu")
    first, second = result.per_report["bertscore_f1"]
    assert second == pytest.approx(1.0, abs=1e-5) and 0 < first < 1
    assert result.scores["bertscore_f1"] == pytest.approx((first + second) / 2)
    assert result.models == (encoder,)
    assert f"model:{encoder}|layer:2|idf:no|rescaled:no|bert-score:" in result.signature


def test_bertscore_takes_long_and_empty_reports(encoder):
    pytest.importorskip("bert_score")
    result = bertscore(
        ["nodule " * 300, "nodule", "nodule"], ["nodule " * 300, "", "left"], model=encoder, num_layers=1
    )
    assert result.per_report["bertscore_f1"][0] == pytest.approx(1.0, abs=1e-5)
    assert result.per_report["bertscore_f1"][1] == 0.0
    assert bertscore(["a"], [" "], model=encoder, num_layers=1).scores["bertscore_f1"] == 0.0


class FakeRadEval:
    """Stands in for `radeval.RadEval`, with its keys and its missing values."""

    per_report = {
        "radgraph": {
            "radgraph_simple": [0.5, 1.0],
            "radgraph_partial": [0.4, 1.0],
            "radgraph_complete": [0.3, 1.0],
        },
        "ratescore": {"ratescore": [0.5, 0.9]},
        "f1radbert_ct": {"f1radbert_ct_sample_acc": [0.0, 1.0]},
        "crimson": {"crimson": [float("nan"), -0.5]},
    }

    def __init__(self, metrics, per_sample=False, show_progress=True):
        (self.name, self.options), self.per_sample = next(iter(metrics.items())), per_sample
        type(self).last = self

    def __call__(self, refs, hyps):
        assert (refs, hyps) == (REFERENCES, CANDIDATES)
        return self.per_report[self.name] if self.per_sample else {"f1radbert_ct_macro_f1": 0.7}


@pytest.fixture
def radeval(monkeypatch):
    module = types.ModuleType("radeval")
    module.RadEval = FakeRadEval
    monkeypatch.setitem(sys.modules, "radeval", module)
    installed = model_metrics.version
    monkeypatch.setattr(
        model_metrics, "version", lambda name: "2.2.1" if name == "radeval" else installed(name)
    )


def test_radgraph_and_ratescore_average_the_reports_and_name_their_models(radeval):
    result = radgraph_f1(REFERENCES, CANDIDATES)
    assert result.scores == {"radgraph_simple": 0.75, "radgraph_partial": 0.7, "radgraph_complete": 0.65}
    assert result.signature.startswith("radgraph|model:StanfordAIMI/RRG_scorers:radgraph-xl|radeval:2.2.1|")
    assert ratescore(REFERENCES, CANDIDATES).models == (
        "Angelakeke/RaTE-NER-Deberta",
        "FremyCompany/BioLORD-2023-C",
    )


def test_radbert_gives_averages_over_all_reports_beside_the_rows(radeval):
    result = radbert_ct_f1(REFERENCES, CANDIDATES)
    assert result.scores == {"f1radbert_ct_sample_acc": 0.5, "f1radbert_ct_macro_f1": 0.7}
    assert result.per_report == {"f1radbert_ct_sample_acc": [0.0, 1.0]}


def test_crimson_runs_on_this_machine_and_leaves_out_what_it_could_not_read(radeval):
    result = crimson(REFERENCES, CANDIDATES)
    assert FakeRadEval.last.options == {"provider": "hf", "model_name": CRIMSON_JUDGE}
    assert result.per_report == {"crimson": [None, -0.5]} and result.scores == {"crimson": -0.5}
    assert crimson(REFERENCES, CANDIDATES, judge="my/judge").models == ("my/judge",)


def test_another_radeval_is_refused_because_its_models_are_not_known(radeval, monkeypatch):
    monkeypatch.setattr(model_metrics, "version", lambda name: "3.0.0")
    with pytest.raises(ImportError, match=r"known for radeval 2\.2, installed is 3\.0\.0"):
        ratescore(REFERENCES, CANDIDATES)


def test_a_radeval_without_its_dependencies_says_so(radeval, monkeypatch):
    def fail(self, **_):
        raise ModuleNotFoundError("No module named 'medspacy'")

    monkeypatch.setattr(FakeRadEval, "__init__", fail)
    with pytest.raises(ImportError, match=r"medspacy.*hf_mu2\[radeval\]"):
        ratescore(REFERENCES, CANDIDATES)


@pytest.mark.parametrize(
    ("package", "extra", "metric"), [("bert_score", "bertscore", bertscore), ("radeval", "radeval", crimson)]
)
def test_without_its_package_a_metric_names_the_extra(monkeypatch, package, extra, metric):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"hf_mu2\[{extra}\]"):
        metric(REFERENCES, CANDIDATES)


@pytest.mark.parametrize("metric", [bertscore, radgraph_f1, ratescore, radbert_ct_f1, crimson])
def test_lists_that_do_not_pair_up_are_refused(metric):
    with pytest.raises(ValueError, match="Every reference needs one candidate"):
        metric(["a"], [])


def test_importing_the_module_imports_no_metric(monkeypatch):
    for package in ("bert_score", "radeval"):
        monkeypatch.setitem(sys.modules, package, None)
    assert runpy.run_path(model_metrics.__file__)["bertscore"]
