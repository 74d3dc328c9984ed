"""`model.push_to_hub()`, `save_pretrained(push_to_hub=True)`, `config.push_to_hub()` and `Trainer(push_to_hub=True)`:
the card that stands there afterwards, and what they leave alone.

One process with Triune pushes in every way to a Hub on loopback. Another, without it and with an empty cache, runs the
lines of Python that the cards print.
"""

import ast
import contextlib
import json
import os
import re
import stat
from typing import NamedTuple

import pytest
import torch
from hub_metadata import check
from hub_repository import Repository
from hub_server import HubServer
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from test_remote_code import CODE, step, visit
from transformers.modelcard import TrainingSummary
from transformers.pipelines import PIPELINE_REGISTRY

from triune import modeling
from triune.configuration import preset
from triune.configuration.configuration_card import FIRST, LAST, TAGS, complete, is_form, page, put_card
from triune.configuration.configuration_triune import HEADS
from triune.configuration.configuration_triune_clip import clip_preset
from triune.configuration.configuration_triune_mae import mae_preset
from triune.configuration.configuration_triune_seq2seq import seq2seq_preset
from triune.modeling.transformer import unchanged


HANDMADE = "---\nlicense: mit\n---\n\n# Mine\n\nWho needs it? [More Information Needed]\n"
HOSTILE = "</td><script>alert(1)</script>\n---\n# {0.__class__} ![x](javascript:x)"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PRESETS = {"TriuneForCausalLM": "gpt2-mini", "TriuneForImageClassification": "vit-mini"}
TEXT = {"max_position_embeddings": 1024, "vocab_size": 30000}


def configuration(head, **changes):
    text = {} if head == "TriuneForImageClassification" else TEXT
    return preset(PRESETS.get(head, "bert-mini"), **{**SIZES, **text, **changes})


def form() -> ModelCard:
    """What transformers sends where there is no card yet."""
    says = "This is the model card of a model. This model card has been automatically generated."
    return ModelCard.from_template(ModelCardData(library_name="transformers"), model_description=says)


def code_of(text: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]


# ---------------------------------------------------------------------------------------------------------------------
# The words


@pytest.mark.parametrize("head", HEADS)
def test_card_says_what_the_configuration_knows(head):
    """Sizes as the configuration has them, parameters as counted by torch, metadata as the Hub demands, code that is
    Python; and no blanks."""
    model = getattr(modeling, head)(configuration(head))
    count = sum(parameter.numel() for parameter in model.parameters())
    card = form()
    complete(card, page(model.config, HEADS[head], count, "user/a_model", "main", True), HEADS[head].pipeline_tag)
    first = card.text.split("\n## ")[0]
    words = [f"{count:,} parameters", "2 layers of width 32", model.config.attention["type"], "`learned`"]
    words += ["32 × 32 × 3", "4 × 4"] if "Image" in head else ["up to 1,024 tokens", "vocabulary 30,000"]
    assert [word for word in words if word not in first] == []
    assert ("labels: 2" in first) == ("Classification" in head)
    assert check(str(card)) == ([], [])
    assert card.data.to_dict().get("pipeline_tag") == HEADS[head].pipeline_tag
    assert card.data.library_name == "transformers" and card.data.tags == list(TAGS)
    assert re.findall(r"None|nan|[{}]|[Mm]ore [Ii]nformation", card.text) == []
    for code in code_of(card.text):
        ast.parse(code)
        assert "trust_remote_code=True" in code and 'revision="main"' in code


@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if head.pipeline_tag])
def test_tasks_are_those_of_pipelines(head):
    """The pipeline of that name uses the head's auto class: against transformers' own table."""
    _, task, _ = PIPELINE_REGISTRY.check_task(HEADS[head].pipeline_tag)
    assert HEADS[head].auto_class in [auto_class.__name__ for auto_class in task["pt"]]


SEVERAL = {
    "TriuneCLIPModel": clip_preset("clip-mini"),
    "TriuneForMaskedImageModeling": mae_preset("mae-mini"),
    "TriuneForConditionalGeneration": seq2seq_preset("seq2seq-mini"),
}


PURPOSES = {
    "TriuneCLIPModel": "for zero-shot-image-classification: ",
    "TriuneForMaskedImageModeling": "for drawing what is hidden of an image: ",
    "TriuneForConditionalGeneration": "for writing a text from another: ",
}
PROCESSORS = {
    "TriuneCLIPModel": "processor",
    "TriuneForMaskedImageModeling": "image_processor",
    "TriuneForConditionalGeneration": "tokenizer",
}


@pytest.mark.parametrize("name", SEVERAL)
def test_models_of_several_stacks_get_a_card(name, tmp_path):
    """In the folder that a push is about to send: what it is for, every stack with its sizes, parameters as counted by
    torch, code that is Python and names an auto class that the folder knows, a pipeline only where there is one."""
    model = getattr(modeling, name)(SEVERAL[name])
    model.save_pretrained(tmp_path)
    form().save(tmp_path / "README.md")
    head = model.config.heads[name]
    put_card(tmp_path, "user/a_model", model.config, head, model.num_parameters())
    text = (tmp_path / "README.md").read_text()
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in text
    for stack in model.config.sub_configs:
        sizes = getattr(model.config, stack)
        assert f"`{stack}`, {sizes.num_hidden_layers} layers of width {sizes.hidden_size}" in text
    assert re.findall(r"None|nan|[{}]|[Mm]ore [Ii]nformation", text.split("---")[2]) == [] and check(text) == ([], [])
    for code in code_of(text):
        ast.parse(code)
    first = text.split("\n## ")[0]
    assert PURPOSES[name] in first and "without a head" not in first and "labels" not in first
    assert f"`{PROCESSORS[name]}.push_to_hub(" in text
    assert f"from transformers import {head.auto_class}" in text
    assert head.auto_class in json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert ("pipeline(" in text) == (head.pipeline_tag is not None)
    if head.pipeline_tag:
        _, task, _ = PIPELINE_REGISTRY.check_task(head.pipeline_tag)
        assert head.auto_class in [auto_class.__name__ for auto_class in task["pt"]]
    assert "there are no weights" in page(model.config, None, 0, "user/a_model", "main", True)


def test_strings_cannot_break_the_card():
    """Labels are not shown; a branch of any name stands in code only, where Python reads back what it was, a tag in
    the metadata only: against the parsers of CommonMark and YAML."""
    names = {"id2label": {0: HOSTILE, 1: "b"}, "label2id": {HOSTILE: 0, "b": 1}}
    config = configuration("TriuneForImageClassification", **names)
    branch = "```</code><script>\"'{x}\\"
    text = page(config, HEADS["TriuneForImageClassification"], 1, "user/__m__", branch, True)
    assert "alert" not in text and "javascript" not in text
    tokens = MarkdownIt().parse(text)
    inline = [token.content for token in tokens if token.type == "inline"]
    assert not any("script>" in content for content in inline)
    assert not any(token.type == "html_block" for token in tokens)
    assert MarkdownIt().render(text).startswith("<h1>__m__</h1>")
    nodes = [node for code in code_of(text) for node in ast.walk(ast.parse(code))]
    strings = [node.value for node in nodes if isinstance(node, ast.Constant)]
    assert strings.count(branch) == 2
    card = form()
    card.data.tags = [HOSTILE]
    complete(card, text, None)
    assert ModelCard(str(card)).data.tags == [*TAGS, HOSTILE] and "alert" not in ModelCard(str(card)).text


def test_every_push_renews_its_own_part_only():
    """A second push over the first: other numbers between the two comments, and not a byte changed outside of them."""
    config, head = configuration("TriuneForMaskedLM"), HEADS["TriuneForMaskedLM"]
    card = form()
    complete(card, page(config, head, 1111, "user/m", "main", True), head.pipeline_tag)
    above, below = "\n<!-- mine -->\nAbove \\1.\n", "\n## Data\n\nMore information needed\n"
    card.data.license, card.text = "mit", above + card.text + below
    complete(card, page(config, head, 2222, "user/m", "main", True), head.pipeline_tag)
    assert card.text.startswith(above) and card.text.endswith(below)
    assert "2,222" in card.text and "1,111" not in card.text
    assert card.text.count(FIRST) == card.text.count(LAST) == 1
    assert card.data.license == "mit"


@pytest.mark.parametrize("written", [HANDMADE, "# Only a title\n"])
def test_a_card_that_somebody_wrote_stays(written):
    """Text and metadata are those from before, also where a line of transformers' form still stands in it."""
    for text in (written, form().text + "\nMy own line.\n"):
        card = ModelCard(text)
        before = str(card)
        complete(card, "ours", "fill-mask")
        assert str(card) == before


def test_form_is_told_from_what_was_written():
    """The form as it is, an empty card, and the form with one line more."""
    assert is_form(form().text) and is_form("\n")
    assert not is_form(form().text + "\nIt knows Latin.\n")


def summary(**changes) -> str:
    """A card as Trainer writes it."""
    lines = {"eval_results": {"Loss": 1.25}, "eval_lines": [{"Step": 4, "Loss": 1.25}], "hyperparameters": {"seed": 7}}
    fields = {"finetuned_from": "", "tags": ["generated_from_trainer"], **lines, **changes}
    return TrainingSummary("trained", **fields).to_model_card()


def test_trainers_card_is_completed():
    """Of what Trainer knows nothing is lost, of its blanks nothing is left."""
    card = ModelCard(summary())
    before = card.text
    part = page(configuration("TriuneForMaskedLM"), HEADS["TriuneForMaskedLM"], 1, "user/trained", "main", False)
    complete(card, part, "fill-mask")
    assert part in card.text
    assert re.findall(r"[Mm]ore [Ii]nformation|\[\]\(|generated automatically", card.text) == []
    assert "trained from scratch" in card.text
    assert card.text.split("## Training procedure")[1] == before.split("## Training procedure")[1]
    assert "- Loss: 1.25" in card.text and "- seed: 7" in card.text
    assert card.data.tags == [*TAGS, "generated_from_trainer"] and card.data.pipeline_tag == "fill-mask"
    assert check(str(card)) == ([], [])


def test_trainers_card_names_its_base_model():
    """A model that was fine-tuned from a repository is still said to be."""
    card = ModelCard(summary(finetuned_from="someone/base"))
    complete(card, "ours", "fill-mask")
    assert "is a fine-tuned version of [someone/base](https://huggingface.co/someone/base)" in card.text


def test_an_adapter_gets_no_card_of_the_model(tmp_path):
    """Where no configuration is sent: the form goes, a card that somebody wrote stays."""
    put_card(tmp_path, "user/m", None)
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "README.md"
    for text, stays in ((str(form()), False), (HANDMADE, True)):
        file.write_text(text, encoding="utf-8")
        put_card(tmp_path, "user/m", configuration("TriuneForMaskedLM"), HEADS["TriuneForMaskedLM"], 1)
        assert file.exists() == stays


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_files_are_readable_as_the_umask_says(tmp_path, umask, mode, shard):
    """Weights and shards too, which safetensors keeps for their owner: against the mode of a new file."""
    former = os.umask(umask)
    try:
        model = modeling.TriuneModel(configuration("TriuneModel", vocab_size=99))
        model.save_pretrained(tmp_path, max_shard_size=shard)
    finally:
        os.umask(former)
    weights = list(tmp_path.glob("*.safetensors"))
    assert (len(weights) > 1) == (shard == "20KB")
    assert {stat.S_IMODE(file.stat().st_mode) for file in (*weights, tmp_path / "config.json")} == {mode}


def test_a_file_is_as_it_was_whatever_happens(tmp_path):
    """Changed, taken away, or in the middle of an error: there again; and what was not there is not made."""
    file = tmp_path / "README.md"
    with unchanged(file):
        file.write_text("new")
    assert file.read_text() == "new"
    for change in (lambda: file.write_text("other"), file.unlink, lambda: file.unlink() or 1 / 0):
        with contextlib.suppress(ZeroDivisionError), unchanged(file):
            change()
        assert file.read_text() == "new"


def test_tags_belong_to_one_model():
    """What is added to one model's tags is not added to another's."""
    one, other = (modeling.TriuneModel(configuration("TriuneModel", vocab_size=9)) for _ in range(2))
    one.add_model_tags("mine")
    assert one.model_tags == [*TAGS, "mine"] and other.model_tags == list(TAGS)


# ---------------------------------------------------------------------------------------------------------------------
# Over HTTP. The next two functions are sent to other processes as source.


def push(handmade, work):
    """Every way of pushing; and what it leaves here."""
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

    from triune.configuration import preset
    from triune.modeling import TriuneForImageClassification, TriuneForMaskedLM

    words = {word: index for index, word in enumerate("[PAD] [UNK] [MASK] a b c".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "model_max_length": 16}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 16, "pad_token_id": 0}

    def make(layers=1):
        torch.manual_seed(layers)
        return TriuneForMaskedLM(preset("bert-mini", num_hidden_layers=layers, **text))

    def write(repository, branch="main"):
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        api.create_branch(repository, branch=branch, exist_ok=True)
        content = handmade.encode()
        api.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id=repository, revision=branch)

    step("push_to_hub")
    make(1).push_to_hub("user/model", tags=["mine"])
    make(2).push_to_hub("user/model")
    tokenizer.push_to_hub("user/model")
    make(2).config.push_to_hub("user/model")  # has nothing to say of a model that is there
    make(2).config.push_to_hub("user/config")
    pictures = preset("vit-mini", num_hidden_layers=1, **sizes, num_labels=3)
    TriuneForImageClassification(pictures).push_to_hub("user/pictures")

    step("somebody's card")
    write("user/handmade")
    make().push_to_hub("user/handmade")
    write("user/branches", "theirs")
    make().push_to_hub("user/branches", revision="theirs")
    make().push_to_hub("user/branches", revision="new")

    step("save_pretrained")
    for name in ("local", "empty"):
        Path(work, name).mkdir()
    Path(work, "local", "README.md").write_text(handmade)
    for name in ("local", "empty"):
        make().save_pretrained(Path(work, name), push_to_hub=True, repo_id=f"user/{name}")

    step("Trainer")
    names = {"input_ids": [3, 4, 2, 5], "labels": [-100, -100, 5, -100]}
    out = str(Path(work, "trainer"))
    steps = {"max_steps": 2, "save_steps": 1, "eval_steps": 1, "eval_strategy": "steps"}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(out, push_to_hub=True, hub_model_id="user/trained", **steps, **quiet)
    data = {"train_dataset": [names] * 4, "eval_dataset": [names] * 4}
    trainer = Trainer(make(), arguments, processing_class=tokenizer, **data)
    trainer.model.config.save_pretrained(out)
    trainer.train()
    trainer.push_to_hub()
    trainer.model.push_to_hub(trainer.hub_model_id)
    inputs = torch.tensor([[3, 4, 2, 5]])
    with torch.no_grad():
        logits = trainer.model.eval()(inputs).logits
    return {"local": Path(work, "local", "README.md").read_text(), "logits": logits.tolist()}


def run_cards(cards):
    """The Python of each card, run in its order."""
    import torch

    found = {}
    for name, blocks in cards.items():
        step(name)
        space = {}
        for block in blocks:
            exec(block, space)
        found[name] = {"class": type(space["model"]).__name__, "parameters": space["model"].num_parameters()}
        if "run" in space and space["run"].task == "fill-mask":
            found[name]["words"] = sorted(answer["token_str"] for answer in space["run"]("a b [MASK] c", top_k=6))
        if name == "user/trained":
            with torch.no_grad():
                found[name]["logits"] = space["model"](torch.tensor([[3, 4, 2, 5]])).logits.tolist()
        if name == "user/model":
            space["model"].push_to_hub("user/copy")
    return found


class Pushed(NamedTuple):
    repositories: dict[str, Repository]
    here: dict

    def card(self, name: str, branch: str = "main") -> ModelCard:
        return ModelCard(self.repositories[name].branches[branch].files["README.md"].decode())


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    work = tmp_path_factory.mktemp("push")
    sent = visit(push, HANDMADE, work, home=work / "home", installed=True, HF_ENDPOINT=hub.endpoint, HF_TOKEN="x")
    return Pushed(hub.repositories, sent.result)


RUNNING = ("user/model", "user/trained", "user/pictures", "user/config")


@pytest.fixture(scope="module")
def ran(hub, pushed, tmp_path_factory):
    cards = {name: code_of(pushed.card(name).text) for name in RUNNING}
    # of the pictures no image processor was sent, as the card says
    cards["user/pictures"] = [block for block in cards["user/pictures"] if "pipeline" not in block]
    home = tmp_path_factory.mktemp("run") / "home"
    return visit(run_cards, cards, home=home, HF_ENDPOINT=hub.endpoint, HF_TOKEN="x").result


def test_pushed_cards_have_no_blanks(pushed):
    """Every card that nobody wrote, on every branch: metadata without an error or a warning, no blanks."""
    for name, repository in pushed.repositories.items():
        for branch, commit in repository.branches.items():
            card = commit.files.get("README.md", b"").decode()
            if "# Mine" not in card and card:
                assert check(card) == ([], []), (name, branch)
                assert set(TAGS) <= set(ModelCard(card).data.tags), (name, branch)
                assert re.findall(r"[Mm]ore [Ii]nformation", card) == [], (name, branch)


def test_second_push_describes_the_second_model(pushed):
    """The configuration that lies there is the one that the card describes; a configuration pushed over it keeps
    that. Tags of the first push stay."""
    files = pushed.repositories["user/model"].branches["main"].files
    card = pushed.card("user/model")
    assert json.loads(files["config.json"])["num_hidden_layers"] == 2
    assert "2 layers of width 32" in card.text
    assert card.data.tags == [*TAGS, "mine"] and card.data.pipeline_tag == "fill-mask"


def test_somebodys_card_stays(pushed):
    """On `main`, and on a branch that `main` knows nothing of: the text from before, to the byte."""
    for name, branch in (("user/handmade", "main"), ("user/branches", "theirs")):
        files = pushed.repositories[name].branches[branch].files
        assert ModelCard(files["README.md"].decode()).text == ModelCard(HANDMADE).text
        assert pushed.card(name, branch).data.license == "mit"
        assert set(files) >= CODE | {"config.json", "model.safetensors"}


def test_card_on_a_branch_loads_the_branch(pushed):
    """A new branch has a card whose snippets name it, and `main` has none."""
    assert 'revision="new"' in pushed.card("user/branches", "new").text
    assert "README.md" not in pushed.repositories["user/branches"].branches["main"].files


def test_saving_and_pushing_keeps_the_local_card(pushed):
    """`save_pretrained(push_to_hub=True)`: a card in the folder is the same afterwards, to the byte."""
    assert pushed.here["local"] == HANDMADE
    for name in ("user/local", "user/empty"):
        assert "1 layers of width 32" in pushed.card(name).text


def test_trainer_pushes_a_repository_that_loads(pushed, ran):
    """Code, tokenizer and weights in every commit, the first included; in a clean process the weights compute what
    they did in training, difference 0.0, and the pipeline answers with the tokenizer's words."""
    commits = [commit for commit in pushed.repositories["user/trained"].commits if commit.files]
    assert len(commits) >= 3
    for commit in commits:
        assert set(commit.files) >= CODE | {"config.json", "model.safetensors", "tokenizer.json"}, commit.summary
    here, there = (torch.tensor(found["logits"]) for found in (pushed.here, ran["user/trained"]))
    assert (here - there).abs().max() == 0.0
    assert ran["user/trained"]["words"] == sorted("[PAD] [UNK] [MASK] a b c".split())


def test_trainers_own_card_has_the_tags(pushed):
    """The commit before the model was pushed after it: Trainer's words, with the family's tags."""
    *_, trainers, last = pushed.repositories["user/trained"].commits
    card = ModelCard(trainers.files["README.md"].decode())
    assert "generated automatically" in card.text
    assert set(card.data.tags) >= {*TAGS, "generated_from_trainer"}
    assert set(last.changed) == {"README.md"}
    assert "## Training results" in pushed.card("user/trained").text


def test_cards_can_be_followed(pushed, ran):
    """The Python that the cards print runs in a clean process and gives the model that was pushed: its class, and the
    number of parameters that its card names."""
    assert {name: found["class"] for name, found in ran.items()} == {
        **{"user/model": "TriuneForMaskedLM", "user/trained": "TriuneForMaskedLM"},
        **{"user/pictures": "TriuneForImageClassification", "user/config": "TriuneModel"},
    }
    for name in ("user/model", "user/trained", "user/pictures"):
        assert f"{ran[name]['parameters']:,} parameters" in pushed.card(name).text, name


def test_a_copy_gets_its_card_too(pushed, ran):
    """A model that was loaded as remote code and pushed again, where Triune is not installed: the same card under the
    other name, and the same code."""
    text = pushed.card("user/model").text.replace("user/model", "user/copy").replace("# model", "# copy")
    assert pushed.card("user/copy").text == text
    first, copy = (pushed.repositories[name].branches["main"].files for name in ("user/model", "user/copy"))
    assert {name: copy.get(name) for name in CODE} == {name: first[name] for name in CODE}
