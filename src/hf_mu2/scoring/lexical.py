"""Score the words of candidate reports against reference reports: BLEU, ROUGE, METEOR, chrF, always with a signature.

Three protocols, never to be mixed: the same texts score 1.8 times apart between them.

| protocol | BLEU-1..4 | ROUGE | METEOR | chrF |
|---|---|---|---|---|
| `default` | sacreBLEU, corpus, 13a tokens | rouge-score F1, stemmed, mean | NLTK, 13a tokens, mean | sacreBLEU |
| `u2` | NLTK method3, split at spaces, mean | as above | NLTK, split at spaces, mean | - |
| `coco` | pycocoevalcap, corpus, PTB tokens | ROUGE-L of pycocoevalcap (beta 1.2) | jar, with Java only | - |

"mean" is that of the reports' own scores. Texts are lower-cased, and every Han character is one word. All scores are
from 0 to 1. The libraries tokenize, stem, align and define the formulas; counting is done for all reports at once and
gives the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import count
from typing import Any, Literal

import numpy as np

from .hygiene import separate_han
from .meteor import NoWordNet, find_wordnet, meteor
from .meteor_jar import count_meteor, meteor_score
from .overlap import NgramCounts, count_ngrams, lcs_length, overlap
from .ptb import ptb_tokenize, ptb_tokenize_java

Protocol = Literal["default", "u2", "coco"]
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "default": ("bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rouge2", "rougeL", "meteor", "chrf"),
    "u2": ("bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rouge2", "rougeL", "meteor"),
    "coco": ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL"),
}
_ORDERS = 4
_CHRF_ORDERS = 6
_COCO_BETA = 1.2


class LexicalScorer:
    """Score any number of systems against one list of references, each text tokenized once.

    Args:
        references (`Sequence[str]`): One non-empty reference per report.
        protocol (`str`): `"default"`, `"u2"` (the mu2 paper's scripts, their BLEU nesting mended) or `"coco"`.
        java (`bool`): For `coco`, use pycocoevalcap's Java: its tokenizer instead of our reading of its rules, and
            METEOR 1.5.
    """

    def __init__(self, references: Sequence[str], *, protocol: Protocol = "default", java: bool = False):
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"`protocol` must be one of {tuple(PROTOCOLS)}, got {protocol!r}. Use `default`, or the protocol of "
                "the paper whose numbers stand beside yours."
            )
        if java and protocol != "coco":
            raise ValueError(
                f'Java is for `protocol="coco"`, got {protocol!r}. Leave out `java`, or choose `coco`.'
            )
        _check_installed()
        self.protocol = protocol
        self.metrics = (*PROTOCOLS[protocol], "meteor") if java else PROTOCOLS[protocol]
        self._codes: defaultdict[Any, int] = defaultdict(count().__next__)
        self._stemmer = _Stemmer()
        self._words: Callable[[list[str]], list[list[str]]] = {
            "default": _each(_tokenize_13a),
            "u2": _each(str.split),
            "coco": ptb_tokenize_java if java else _each(ptb_tokenize),
        }[protocol]
        self._tokenized: dict[str, tuple[list[str], list[str]]] = {}
        self._wordnet: Any
        self._wordnet, wordnet_name = (None, "") if protocol == "coco" else find_wordnet()
        self.signatures = _signatures(protocol, java, wordnet_name, len(references))
        self._references = self._prepare(references)

    def columns(self, candidates: Sequence[str]) -> dict[str, np.ndarray]:
        """Count what the scores are computed from, one row per report.

        Sums of rows are the statistics of a set of reports: [`scores`] turns them into numbers. Resampling reports
        never reads a text again.
        """
        if len(candidates) != len(self._references.words):
            raise ValueError(
                f"Every reference needs one candidate, got {len(candidates)} for {len(self._references.words)}. "
                'Give "" where the system answered nothing.'
            )
        mine, theirs = self._prepare(candidates), self._references
        grams = np.hstack(
            [overlap(mine.grams, theirs.grams), mine.grams.totals, theirs.grams.totals[:, :1]]
        ).astype(float)
        columns = {"reports": np.ones((len(candidates), 1))}
        if self.protocol == "u2":
            columns["bleu"] = _bleu(grams, "u2")
        else:
            columns["ngrams"] = grams
        if self.protocol == "coco":
            rouge = [_coco_rouge_l(*pair) for pair in zip(mine.words, theirs.words)]
            columns["rouge"] = np.array(rouge)[:, None]
            if "meteor" in self.metrics:
                columns["meteor"] = count_meteor(
                    *([" ".join(words) for words in side.words] for side in (mine, theirs))
                )
            return columns
        columns["rouge"] = self._rouge(mine, theirs)
        columns["meteor"] = np.array([self._meteor(*pair) for pair in zip(mine.words, theirs.words)])[:, None]
        if self.protocol == "default":
            assert mine.characters and theirs.characters
            candidate_totals, reference_totals = mine.characters.totals, theirs.characters.totals
            # sacreBLEU does not count a candidate's n-grams where the reference has none of that order.
            columns["chrf"] = np.hstack(
                [
                    overlap(mine.characters, theirs.characters),
                    candidate_totals * (reference_totals > 0),
                    reference_totals,
                ]
            ).astype(float)
        return columns

    def scores(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Turn sums of [`columns`] over reports, of shape `(..., width)`, into one score per leading index."""
        reports = np.maximum(sums["reports"], 1e-12)
        bleu = (
            sums["bleu"] / reports if self.protocol == "u2" else _bleu(sums["ngrams"], self.protocol)
        )  # (..., 4)
        found = {f"bleu{order + 1}": bleu[..., order] for order in range(_ORDERS)}
        rouge = sums["rouge"] / reports
        if self.protocol == "coco":
            found["rougeL"] = rouge[..., 0]
            return found | ({"meteor": meteor_score(sums["meteor"])} if "meteor" in self.metrics else {})
        found |= {name: rouge[..., index] for index, name in enumerate(("rouge1", "rouge2", "rougeL"))}
        found["meteor"] = (sums["meteor"] / reports)[..., 0]
        if self.protocol == "default":
            found["chrf"] = _chrf(sums["chrf"])
        return found

    def _prepare(self, texts: Sequence[str]) -> _Prepared:
        new = [text for text in dict.fromkeys(texts) if text not in self._tokenized]
        plain = [_plain(text) for text in new]
        for text, lowered, tokens in zip(new, plain, self._words(plain)):
            self._tokenized[text] = (
                tokens,
                [] if self.protocol == "coco" else _rouge_tokens(lowered, self._stemmer),
            )
        words = [self._tokenized[text][0] for text in texts]
        stems = [self._tokenized[text][1] for text in texts]
        if self.protocol == "coco":
            return _Prepared(words, self._count(words, _ORDERS), stems, None, None)
        characters = None
        if self.protocol == "default":
            joined = ["".join(text.lower().split()) for text in texts]
            codes = [np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32) for text in joined]
            characters = count_ngrams(codes, _CHRF_ORDERS)
        return _Prepared(words, self._count(words, _ORDERS), stems, self._count(stems, 2), characters)

    def _count(self, texts: list[list[str]], max_order: int) -> NgramCounts:
        codes = self._codes
        return count_ngrams(
            [np.array([codes[word] for word in words], dtype=np.uint64) for words in texts], max_order
        )

    def _rouge(self, mine: _Prepared, theirs: _Prepared) -> np.ndarray:
        """ROUGE-1, -2 and -L F1 per report, as rouge-score defines them."""
        assert mine.stem_grams and theirs.stem_grams
        shared = overlap(mine.stem_grams, theirs.stem_grams)
        longest = [lcs_length(*pair) for pair in zip(theirs.stems, mine.stems)]
        shared = np.column_stack([shared, np.array(longest, dtype=float)])
        return _ratio(
            2 * shared, mine.stem_grams.totals[:, [0, 1, 0]] + theirs.stem_grams.totals[:, [0, 1, 0]]
        )

    def _meteor(self, candidate: list[str], reference: list[str]) -> float:
        if isinstance(self._wordnet, NoWordNet):
            return meteor(reference, candidate, self._stemmer.stem)
        from nltk.translate.meteor_score import single_meteor_score

        return single_meteor_score(reference, candidate, stemmer=self._stemmer, wordnet=self._wordnet)


def score_texts(
    candidates: Sequence[str],
    references: Sequence[str],
    *,
    protocol: Protocol = "default",
    java: bool = False,
) -> dict[str, float]:
    """Score one system: the metrics of a protocol by name, from 0 to 1."""
    scorer = LexicalScorer(references, protocol=protocol, java=java)
    sums = {name: column.sum(axis=0) for name, column in scorer.columns(candidates).items()}
    return {name: float(value) for name, value in scorer.scores(sums).items()}


def rouge_l(candidates: Sequence[str], references: Sequence[str]) -> list[float]:
    """Score each report for itself by ROUGE-L, as the protocols `default` and `u2` do; nothing else is computed."""
    _check_installed()
    stemmer = _Stemmer()
    stems = {text: _rouge_tokens(_plain(text), stemmer) for text in dict.fromkeys((*candidates, *references))}
    pairs = [(stems[mine], stems[theirs]) for mine, theirs in zip(candidates, references, strict=True)]
    return [
        2 * lcs_length(theirs, mine) / (len(mine) + len(theirs)) if mine or theirs else 0.0
        for mine, theirs in pairs
    ]


@dataclass(frozen=True)
class _Prepared:
    """Tokens and n-gram counts of a list of texts, as far as the protocol needs them."""

    words: list[list[str]]
    grams: NgramCounts
    stems: list[list[str]]
    stem_grams: NgramCounts | None
    characters: NgramCounts | None


class _Stemmer:
    """NLTK's Porter stemmer that stems each word once: reports use few words, again and again."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = cache(PorterStemmer().stem)


def _each(tokenize: Callable[[str], list[str]]) -> Callable[[list[str]], list[list[str]]]:
    return lambda texts: [tokenize(text) for text in texts]


def _tokenize_13a(text: str) -> list[str]:
    return _tokenizer_13a()(text).split()


@cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _plain(text: str) -> str:
    return separate_han(" ".join(text.lower().split()))


def _rouge_tokens(text: str, stemmer: _Stemmer) -> list[str]:
    """Tokenize as rouge-score does; Han characters, which it drops, stay as words."""
    from rouge_score.tokenize import tokenize

    if text.isascii():
        return tokenize(text, stemmer)
    words: list[str] = []
    latin: list[str] = []
    for part in text.split():
        if len(part) == 1 and separate_han(part) != part:
            words += [*tokenize(" ".join(latin), stemmer), part]
            latin = []
        else:
            latin.append(part)
    return words + tokenize(" ".join(latin), stemmer)


def _bleu(statistics: np.ndarray, protocol: str) -> np.ndarray:
    """Compute BLEU-1..4 from matches, candidate n-grams and reference words, `(..., 9)` -> `(..., 4)`."""
    matches, totals = statistics[..., :_ORDERS], statistics[..., _ORDERS : 2 * _ORDERS]
    length, reference_length = totals[..., :1], statistics[..., -1:]
    orders = np.arange(1, _ORDERS + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if protocol == "coco":  # bleu_scorer.py of pycocoevalcap, with its two small constants
            precision = (matches + 1e-15) / (totals + 1e-9)
            ratio = (length + 1e-15) / (reference_length + 1e-9)
            penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
            return np.cumprod(precision, axis=-1) ** (1 / orders) * penalty
        # NIST smoothing (sacreBLEU's `exp`, NLTK's method3): the k-th order without a match counts 1 / 2^k.
        halvings = 2.0 ** np.cumsum(matches == 0, axis=-1)
        precision = np.where(matches > 0, matches, 1 / halvings) / (
            totals if protocol == "default" else np.maximum(totals, 1)
        )
        precision[np.broadcast_to(totals == 0, precision.shape) & (protocol == "default")] = 0
        penalty = np.where(length < reference_length, np.exp(1 - reference_length / length), 1.0)
        score = np.exp(np.cumsum(np.log(precision), axis=-1) / orders) * penalty
    return np.where((matches[..., :1] > 0) & (length > 0), score, 0.0)


def _chrf(statistics: np.ndarray) -> np.ndarray:
    """Compute chrF2 from matches, candidate and reference n-grams, `(..., 18)` -> `(...)`, as sacreBLEU does."""
    matches, candidate, reference = np.split(statistics, 3, axis=-1)
    counted = (candidate > 0) & (reference > 0)
    orders = np.maximum(counted.sum(axis=-1), 1)
    precision = (_ratio(matches, candidate) * counted).sum(axis=-1) / orders
    recall = (_ratio(matches, reference) * counted).sum(axis=-1) / orders
    return _ratio(5 * precision * recall, 4 * precision + recall)


def _coco_rouge_l(candidate: list[str], reference: list[str]) -> float:
    """ROUGE-L of pycocoevalcap; an empty text counts as one empty word there."""
    longest = lcs_length(reference, candidate)
    precision, recall = longest / max(len(candidate), 1), longest / max(len(reference), 1)
    if not longest:
        return 0.0
    return (1 + _COCO_BETA**2) * precision * recall / (recall + _COCO_BETA**2 * precision)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _signatures(protocol: str, java: bool, wordnet: str, num_reports: int) -> dict[str, str]:
    """Write down, per metric, everything that moves its number."""
    end = f"lc:yes|han:characters|n:{num_reports}|protocol:{protocol}"
    words = {"default": "13a", "u2": "spaces", "coco": "ptb-java-3.4.1" if java else "ptb-rules-1"}[protocol]
    bleu = {
        "default": f"sacrebleu:{version('sacrebleu')}|agg:corpus|smooth:exp",
        "u2": f"nltk:{version('nltk')}|agg:mean|smooth:method3",
        "coco": "pycocoevalcap:1.2|agg:corpus|smooth:none",
    }[protocol]
    signatures = {f"bleu{order}": f"bleu{order}|{bleu}|tok:{words}|{end}" for order in range(1, _ORDERS + 1)}
    if protocol == "coco":
        signatures["rougeL"] = f"rougeL|pycocoevalcap:1.2|agg:mean|beta:1.2|tok:{words}|{end}"
        jar = f"meteor|jar:1.5|agg:corpus|lang:en|norm:yes|tok:{words}|stem:snowball|wn:jar|para:jar|{end}"
        return signatures | ({"meteor": jar} if java else {})
    rouge = f"rouge-score:{version('rouge-score')}|agg:mean|f1|tok:alphanumeric|stem:porter"
    signatures |= {name: f"{name}|{rouge}|{end}" for name in ("rouge1", "rouge2", "rougeL")}
    signatures["meteor"] = (
        f"meteor|nltk:{version('nltk')}|agg:mean|alpha:.9|beta:3|gamma:.5|tok:{words}|stem:porter|wn:{wordnet}|{end}"
    )
    if protocol == "default":
        signatures["chrf"] = f"chrf2|sacrebleu:{version('sacrebleu')}|agg:corpus|nc:6|nw:0|space:no|{end}"
    return signatures


def _check_installed() -> None:
    try:
        import nltk  # noqa: F401
        import rouge_score  # noqa: F401
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Text scores need the package `{error.name}`, which is not installed. Run `pip install "hf_mu2[score]"`.'
        ) from error
