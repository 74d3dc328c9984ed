"""What the Hub reads of a page: licence, task, tags, data, measured values, and inputs with recorded outputs.

Notable: nothing is claimed that the files do not say. A data set or base model is named if it is one of the Hub's; a
measured value carries what it has to be compared with. What people decide, and have decided on a former page, stands.
"""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from triune.configuration import stacks_of
from triune.configuration.configuration_card import TAGS
from triune.configuration.configuration_triune import nearest
from triune.training.console import shown
from triune.training.hub.facts import BUNDLED, Facts, is_repository
from triune.training.hub.markdown import address


HUB, MAIN = "https://huggingface.co", "main"

# The identifiers that the Hub knows.
LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()
)
LICENSE = "apache-2.0"

TASKS = {
    "fill-mask": "Masked language modeling",
    "text-generation": "Causal language modeling",
    "image-classification": "Image classification",
    "text-classification": "Text classification",
    "token-classification": "Token classification",
    "zero-shot-image-classification": "Zero-shot image classification",
    "text2text-generation": "Text to text generation",
    "image-to-image": "Masked image modeling",
}
OF_HEADS = {
    "TriuneForPreTraining": "Masked language modeling and next sentence prediction",
    "TriuneCLIPModel": "Image-text retrieval and zero-shot image classification",
}
METRIC_IDS = {  # those of hf.co/metrics
    **{"accuracy": "accuracy", "perplexity": "perplexity", "macro_f1": "f1", "zero_shot_accuracy": "accuracy"},
    **{"bleu": "bleu", "chrf": "chrf", "exact_match": "exact_match"},
}

# What people decide: their own value stands, whatever is known here. Those that begin with extra_gated_ too.
THEIRS = {"license", "license_name", "license_link", "language", "thumbnail", "new_version", "co2_eq_emissions"}
# What shows held-out data: not taken over to a page that must not.
SHOWING = {"widget"}


def is_hub_name(name: str) -> bool:
    """user/model. A folder of that form is written ./user/model."""
    return name.count("/") == 1 and is_repository(name)


def checked_license(name: Any) -> str:
    if name not in LICENSES:
        raise ValueError(
            f"license={name!r} is not allowed: it must be one that the Hub knows, such as apache-2.0, mit, cc-by-4.0 "
            f"or other{nearest(name, LICENSES)}"
        )
    return name


def checked_languages(names: str) -> str | list[str]:
    """en, or several with commas."""
    found = [name.strip() for name in names.split(",")]
    for name in found:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", name):
            raise ValueError(
                f"language={name!r} is not allowed: it must be a code of two or three letters: en, de, ..."
            )
    return found if len(found) > 1 else found[0]


# ---------------------------------------------------------------------------------------------------------------------


def tags(facts: Facts) -> list[str]:
    stacks = stacks_of(facts.config).values()
    words = {
        "vision-transformer": facts.reads_images,
        "masked-language-modeling": facts.pipeline_tag == "fill-mask",
        "next-sentence-prediction": facts.head == "TriuneForPreTraining",
        "causal-language-modeling": facts.pipeline_tag == "text-generation",
        "encoder-decoder": facts.config.is_encoder_decoder,
        "masked-autoencoder": facts.head == "TriuneForMaskedImageModeling",
        "contrastive-learning": facts.head == "TriuneCLIPModel",
        "rotary-embeddings": any(stack.position["type"] == "rotary" for stack in stacks),
        "relative-positions": any(stack.position["type"] == "relative" for stack in stacks),
        "rmsnorm": any(stack.norm["type"] == "rmsnorm" for stack in stacks),
        "gated-feed-forward": any(stack.feed_forward["type"] == "gated" for stack in stacks),
        "grouped-query-attention": any(stack.num_key_value_heads < stack.num_attention_heads for stack in stacks),
    }
    return [*TAGS, *(word for word, applies in words.items() if applies)]


def unite(own: list[str], others: Any) -> list[str]:
    added = [others] if isinstance(others, str) else others or []
    return list(dict.fromkeys([*own, *map(str, added)]))


def rounded(value: float) -> float:
    return float(f"{value:.6g}")


def dataset_type(name: str) -> str:
    """In the form that the Hub asks for; a file here may have any name."""
    fits = re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", name)
    return name if fits else re.sub(r"[^\w.-]+", "-", name).strip("-") or "data"


def results(facts: Facts) -> list[EvalResult]:
    """What was measured, each with what it is to be compared with."""
    if facts.task_type is None:
        return []
    data, baselines = facts.data or "held-out data", facts.summary.get("baselines", {})
    compared = {
        name: {other: rounded(value) for other, value in values.items() if value is not None}
        for name, values in baselines.items()
    }
    return [
        EvalResult(
            task_type=facts.task_type,
            task_name=OF_HEADS.get(facts.head, TASKS[facts.task_type]),
            dataset_type=dataset_type(data),
            dataset_name=f"{data}, held out",
            dataset_config=facts.settings.get("dataset_config_name"),
            dataset_split="validation",
            metric_type=METRIC_IDS.get(name, name),
            metric_name=shown(name).label,
            metric_value=rounded(value),
            metric_args={"baselines": compared[name]} if compared.get(name) else None,
            verified=False,  # measured by whoever trained it, not by the Hub
        )
        for name, value in facts.metrics.items()
    ]


def widget(facts: Facts, name: str) -> list[dict[str, Any]]:
    """Inputs with recorded outputs: the Hub shows them, though nobody computes there."""
    return [
        {**asked(one, name, facts), "example_title": f"Held out {place}", "output": output(one)}
        for place, one in enumerate(facts.examples, start=1)
    ]


def asked(example: dict[str, Any], name: str, facts: Facts) -> dict[str, Any]:
    """What a pipeline is given."""
    if "text" in example:
        return {"text": example["text"]}
    source = {"src": f"{HUB}/{name}/resolve/{MAIN}/{address(example['image'])}"}
    if not facts.reads_text:
        return source
    labels = ", ".join(one.get("label", "") for one in facts.examples)
    return {**source, "candidate_labels": labels, "parameters": {"hypothesis_template": "{}"}}


def output(example: dict[str, Any]) -> dict[str, str] | list[dict[str, Any]]:
    if "continuation" in example:
        return {"text": example["continuation"]}
    words = [{"label": one["token_str"].strip(), "score": one["score"]} for one in example.get("masks", [[]])[0]]
    return [{"label": one["label"], "score": round(one["score"], 4)} for one in example.get("top", words)]


def known(facts: Facts, name: str, examples: bool) -> dict[str, Any]:
    """What the files say."""
    bundled = BUNDLED.get(facts.settings.get("dataset_name", ""))
    # of pairs of texts, and where there is no pipeline, nothing that the Hub could show
    pipes = facts.pipeline_tag is not None and facts.head != "TriuneForPreTraining"
    shows = examples and pipes and (is_hub_name(name) or not facts.reads_images)
    found = {
        "license": LICENSE,
        "library_name": "transformers",
        "pipeline_tag": facts.pipeline_tag,
        "language": bundled and bundled.language,
        "datasets": facts.dataset and [facts.dataset],
        "base_model": facts.base_model,
        "metrics": list(dict.fromkeys(METRIC_IDS[one] for one in facts.metrics if one in METRIC_IDS)),
        "widget": widget(facts, name) if shows else None,
    }
    return {key: value for key, value in found.items() if value}


def metadata(
    facts: Facts,
    name: str,
    former: dict[str, Any] | None = None,
    examples: bool = True,
    license: str | None = None,
    language: str | None = None,
) -> ModelCardData:
    """Of a page with this name; `former`: that of the page that it replaces. What is given here goes before all."""
    before = {key: value for key, value in (former or {}).items() if examples or key not in SHOWING}
    theirs = {key: value for key, value in before.items() if key in THEIRS or key.startswith("extra_gated_")}
    found = {**before, **known(facts, name, examples), **theirs}
    found |= {"license": license} if license else {}
    found |= {"language": checked_languages(language)} if language else {}
    if checked_license(found["license"]) == "other":
        found = {"license_name": "other", "license_link": "LICENSE", **found}
    found["tags"] = unite(tags(facts), before.get("tags"))
    evaluated = results(facts)
    if evaluated:
        found |= {
            "model_name": facts.title if not is_hub_name(name) else name.split("/")[1],
            "eval_results": evaluated,
        }
        found.pop("model-index", None)
    return ModelCardData(**found)
