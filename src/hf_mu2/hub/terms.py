"""What the licences of base models and corpora ask of a model that was made from them.

Reads: nothing.
Writes: nothing. The table states what the licences said when it was written; it is no legal advice.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hf_mu2.data.build import CORPORA, corpus_info
from hf_mu2.data.corpus import CorpusInfo

NOTICE_FILE = "NOTICE"
# Identifiers of the Hub under which others may not make money with a model; `other` may say so in its own words.
NON_COMMERCIAL = re.compile(r".*-nc(-.*)?|.*non-?commercial.*|other")


@dataclass(frozen=True)
class BaseTerms:
    """Terms of a family of base models.

    Args:
        family (`str`): What people call it.
        pattern (`str`): Regular expression for Hub ids of the family, in lower case.
        licence (`str`): Identifier that the card must name.
        name_prefix (`str`): What the name of a derived model must begin with.
        credit (`str`): What the card must display.
        notice (`str`): What the file `NOTICE` must hold.
    """

    family: str
    pattern: str
    licence: str
    name_prefix: str = ""
    credit: str = ""
    notice: str = ""


def _llama3(version: str) -> BaseTerms:
    return BaseTerms(
        family=f"Llama {version}",
        pattern=rf"(.*/)?(meta-)?llama-?{re.escape(version)}-.*",
        licence="llama3" if version == "3" else f"llama{version}",
        name_prefix="Llama",
        credit="Built with Llama",
        notice=(
            f"Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, "
            "Inc. All Rights Reserved."
        ),
    )


# Community licences of Meta (llama.com), section 1.b of each; Gemma Terms of Use, section 3.1; LICENSE files of Qwen.
BASE_TERMS: tuple[BaseTerms, ...] = (
    *(_llama3(version) for version in ("3", "3.1", "3.2", "3.3")),
    BaseTerms(
        family="Llama 2",
        pattern=r"(.*/)?llama-?2-.*|.*radllama2.*",
        licence="llama2",
        notice=(
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights "
            "Reserved."
        ),
    ),
    BaseTerms(
        family="Gemma",
        pattern=r"(.*/)?(med)?gemma-.*",
        licence="gemma",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
    BaseTerms(
        family="Qwen2.5 at 3B",
        pattern=r"(.*/)?qwen2\.5-(vl-)?3b.*",
        licence="other",
        credit="Built with Qwen",
        notice=(
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights "
            "Reserved."
        ),
    ),
    BaseTerms(family="Qwen", pattern=r"(.*/)?qwen[23].*", licence="apache-2.0"),
    BaseTerms(family="M3D", pattern=r"goodbaiba/m3d.*", licence="apache-2.0"),
)


def terms_of(base_model: str) -> BaseTerms | None:
    """Look up the terms of a base model by its Hub id or the name of its folder; the first that fits."""
    name = base_model.lower()
    return next((terms for terms in BASE_TERMS if re.fullmatch(terms.pattern, name)), None)


def corpora_of(names: Iterable[str]) -> list[CorpusInfo]:
    """Look up corpora by the builder's name, title or Hub id; unknown ones are left out."""
    wanted = {plain_name(name) for name in names}
    return [info for info in map(corpus_info, CORPORA) if wanted & names_of(info)]


def licence_problems(
    repo_id: str,
    licence: str,
    card: str,
    notice: str,
    base_models: Iterable[str],
    corpora: Iterable[CorpusInfo],
) -> Iterator[str]:
    """Say which terms a model that is to be published does not meet.

    Args:
        repo_id (`str`): Where it will be published.
        licence (`str`): What its card names.
        card, notice (`str`): Texts of `README.md` and `NOTICE`.
    """
    name = repo_id.rsplit("/", 1)[-1]
    for base in base_models:
        terms = terms_of(base)
        if terms is None:
            continue
        if licence != terms.licence and terms.licence != "apache-2.0":
            yield f"it is made from {base}: its card must name the licence `{terms.licence}`, it names `{licence}`"
        if not name.startswith(terms.name_prefix):
            yield (
                f"it is made from {base}, whose licence asks for a name that begins with `{terms.name_prefix}`, "
                f"`{name}` does not"
            )
        if terms.credit not in card:
            yield f'it is made from {base}, whose licence asks the card to display "{terms.credit}"'
        if terms.notice not in " ".join(notice.split()):
            yield f"it is made from {base}, whose licence asks for a file `{NOTICE_FILE}` that says: {terms.notice}"
    for info in corpora:
        if (
            NON_COMMERCIAL.fullmatch(info.licence)
            and info.licence != "other"
            and not NON_COMMERCIAL.fullmatch(licence)
        ):
            yield (
                f"it was trained on {info.title} ({info.licence}), which is not for commercial use, and its card names "
                f"`{licence}`, which allows that: name `{info.licence}`"
            )


def licence_warnings(corpora: Iterable[CorpusInfo]) -> Iterator[str]:
    """Say what no check can settle."""
    for info in corpora:
        if "-nd" in info.licence:
            yield (
                f"{info.title} ({info.licence}) forbids sharing derivatives. Whether a model is one is for you and its "
                "owners to settle."
            )
        elif info.licence == "other" and not info.redistributable:
            yield f"{info.title} has terms of its own: {info.terms}"


def names_of(info: CorpusInfo) -> set[str]:
    """Return every name of a corpus, plain: of its builder, its title, its Hub id."""
    last_two = "/".join(info.url.rstrip("/").split("/")[-2:])  # of a Hub address the id
    return {plain_name(name) for name in (info.name, info.title, last_two) if name}


def plain_name(name: str) -> str:
    """Reduce a name to its letters and digits in lower case."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
