"""Secrets are found in what is to be published and taken out of what is printed. Every secret here is made up, and put
together from parts, so that this file holds none."""

import base64
import json
import random
import string
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import save

from triune.training.hub import scan
from triune.training.tokenizers import train_tokenizer


ROOT = Path(__file__).resolve().parents[2]
ALPHABET = string.ascii_letters + string.digits


def letters(count, alphabet=ALPHABET, seed=0):
    """With at least one digit and one capital."""
    return "9A" + "".join(random.Random(f"{seed} {count}").choices(alphabet, k=count - 2))


TOKEN = "hf_" + letters(34)
UPPER, HEX = string.ascii_uppercase + string.digits, string.digits + "abcdef"
BODY = "\n".join(letters(64, seed=row) for row in range(20))

# kind -> texts that hold one, and what is shown of it
PLANTED = {
    "Hugging Face token": {"hf_" + letters(34, seed=1): "hf_…(37 characters)"},
    "AWS access key": {"AKIA" + letters(16, UPPER): "AKIA…(20 characters)"},
    "GitHub token": {"ghp_" + letters(36): "ghp_…(40 characters)", "github_pat_" + letters(82): "github_pat_…(93 "},
    "GitLab token": {"glpat-" + letters(20): "glpat-…(26 characters)"},
    "OpenAI or Anthropic key": {
        "sk-" + letters(48): "sk-…(51 characters)",
        "sk-proj-" + letters(100): "sk-proj-…(108 characters)",
        "sk-ant-api03-" + letters(95): "sk-ant-…(108 characters)",
    },
    "Stripe key": {"sk_live_" + letters(24): "sk_live_…(32 characters)"},
    "Slack token": {"xoxb-" + letters(12, string.digits): "xoxb-…(17 characters)"},
    "Slack webhook": {"https://hooks.slack.com/services/" + "T00000000/B00000000/" + letters(24): "hooks.slack.com/"},
    "Google key": {"AIza" + letters(35): "AIza…(39 characters)"},
    "npm token": {"npm_" + letters(36): "npm_…(40 characters)"},
    "PyPI token": {"pypi-" + "AgE" + letters(60): "pypi-…(68 characters)"},
    "JSON web token": {"eyJ" + letters(20) + ".eyJ" + letters(40) + "." + letters(30): "eyJ…("},
    "private key": {
        f"-----BEGIN {kind}PRIVATE {'KEY'}-----\n{BODY}\n-----END {kind}PRIVATE {'KEY'}-----": f"{kind}…("
        for kind in ("", "RSA ", "OPENSSH ")
    },
    "password in an address": {"https://me:" + letters(12) + "@example.org/data": "://…("},
    "authorization header": {
        "Authorization: Bearer " + letters(40): "Bearer …(",
        "authorization = basic " + letters(24): "authorization = basic …(",
    },
    "assigned secret": {
        f"{before}{letters(32, HEX)}{after}": f"{head}…("
        for before, after, head in (
            ("PASS" + "WORD=", "", "PASSWORD"),
            ('"api' + '_key": "', '"', "api_key"),
            ("wandb" + "_api_key: ", " # mine", "api_key"),
            ("aws_secret" + "_access_key = ", "", "secret_access_key"),
            ("client_sec" + "ret='", "'", "secret"),
        )
    },
}
CASES = [pytest.param(kind, text, shown, id=kind) for kind, found in PLANTED.items() for text, shown in found.items()]


def test_every_kind_is_planted():
    """The cases below are those of the table."""
    assert PLANTED.keys() == scan.KINDS.keys()


@pytest.mark.parametrize(("kind", "text", "shown"), CASES)
def test_a_planted_secret(tmp_path, kind, text, shown):
    """Found with its line, from bytes and from a file, and nothing of it is shown beyond its public prefix."""
    whole = f"first line\nsecond: {text} and more\n"
    (tmp_path / "x").write_text(whole)
    for content in (whole.encode(), tmp_path / "x"):
        (found,) = scan.secrets({"recipe.yaml": content}, None)
        assert (found.file, found.line, found.kind) == ("recipe.yaml", 2, kind)
        assert found.shown.startswith(shown)
        assert not any(piece in found.shown for piece in pieces(text))


def pieces(text, size=8):
    """Parts of the made-up characters in a text."""
    return {
        text[at : at + size]
        for at in range(len(text) - size)
        if any(c.isdigit() for c in text[at : at + size]) and any(c.isalpha() for c in text[at : at + size])
    }


@pytest.mark.parametrize(("kind", "text", "shown"), CASES)
def test_a_planted_secret_is_not_printed(kind, text, shown):
    """What is left of a text holds no part of the secret, and all that stands around it."""
    left = scan.redact(f"before {text} after", None)
    assert left.startswith("before ")
    assert left.endswith(" after")
    assert not any(piece in left for piece in pieces(text))
    assert "characters)" in left


def test_a_private_key_that_is_cut_off():
    """Without its end, what there is of it is not printed."""
    text = next(iter(PLANTED["private key"])).partition("-----END")[0]
    left = scan.redact(f"before {text}", None)
    assert left.startswith("before …(")
    assert not any(row in left for row in BODY.splitlines())


FORMS = {
    "plain": TOKEN.encode(),
    "in a sentence": f"token={TOKEN}.".encode(),
    "UTF-16": TOKEN.encode("utf-16"),
    "hexadecimal": TOKEN.encode().hex().encode(),
    "capital hexadecimal": TOKEN.encode().hex().upper().encode(),
    "quoted": TOKEN.replace("_", "%5F").encode(),
    "quoted in small letters": TOKEN.replace("_", "%5f").encode(),
    "all quoted": "".join(f"%{byte:02x}" for byte in TOKEN.encode()).encode(),
    "in a quoted address": quote(f"https://user:{TOKEN}@huggingface.co", safe="").encode(),
    **{
        f"base64 {before} {name}": encode(b"u" * before + TOKEN.encode() + b":" * after)
        for before in range(4)
        for after in range(3)
        for name, encode in (("standard", base64.b64encode), ("for addresses", base64.urlsafe_b64encode))
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_the_token_in_use(form, tmp_path):
    """It is found in whatever form, in text, in a picture, and among the numbers of weights; and not printed."""
    filler = bytes(random.Random(0).choices(range(256), k=5000))
    files = {
        "README.md": b"a\nb\n" + FORMS[form] + b"\n",
        "figures/loss.png": b"\x89PNG" + filler + FORMS[form] + filler,
        "model.safetensors": save({"x": torch.zeros(3)}) + filler + FORMS[form] + filler,
    }
    (tmp_path / "weights").write_bytes(files["model.safetensors"])
    found = scan.secrets({**files, "model.safetensors": tmp_path / "weights"}, TOKEN)
    assert {(one.file, one.kind) for one in found} == {(name, scan.THE_TOKEN) for name in files}
    assert next(one.line for one in found if one.file == "README.md") == 3
    assert {one.shown for one in found} == {"hf_…(37 characters)"}
    text = FORMS[form].decode("utf-8", errors="replace")
    middle = text[len(text) // 2 - 6 : len(text) // 2 + 6]
    assert middle not in scan.redact(text, TOKEN)


def test_a_token_with_other_letters():
    """Base64 differs between its two alphabets only where + and / arise: a token that makes them, in each."""
    token = "~~~?>?~~~?>?~~~?>?"
    assert b"+" in base64.b64encode(token.encode()) or b"/" in base64.b64encode(token.encode())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert scan.secrets({"x": encode(token.encode())}, token)
    assert scan.secrets({"x": quote(token, safe="").encode()}, token)


def test_a_short_token_is_none():
    """What stands in every file cannot be looked for; nor can no token."""
    for token in (None, "", "x", "abcdefg"):
        assert scan.secrets({"x": b"an x is abcdefg"}, token) == []
        assert scan.redact("an x is abcdefg", token) == "an x is abcdefg"


def test_another_token_beside_the_own():
    """Both are told, the own one once."""
    other = "hf_" + letters(34, seed=7)
    found = scan.secrets({"x": f"{TOKEN}\n{other}\n".encode()}, TOKEN)
    assert [(one.line, one.kind) for one in found] == [(1, scan.THE_TOKEN), (2, "Hugging Face token")]


def test_the_header_of_weights_is_text():
    """A secret in the metadata is found; what looks like one among the numbers is not looked for."""
    secret = "ghp_" + letters(36)
    (found,) = scan.secrets({"model.safetensors": save({"x": torch.zeros(1)}, metadata={"note": secret})}, None)
    assert (found.kind, found.line) == ("GitHub token", 1)
    numbers = torch.frombuffer(bytearray(f"  {secret}  ".encode()), dtype=torch.uint8)
    assert scan.secrets({"model.safetensors": save({"x": numbers})}, None) == []
    assert scan.secrets({"model.safetensors": b"", "short.safetensors": b"\xff\xff"}, None) == []


# ---------------------------------------------------------------------------------------------------------------------
# What is none

HARMLESS = (
    'pad_token: "[PAD]", mask_token = "[MASK]", eos_token_id=50256',
    "token = os.environ['HF_TOKEN']; HF_TOKEN=$HF_TOKEN; password = getpass()",
    'password: str | None = None  # secret_key="..."',
    "tokenizer.save_pretrained(folder), hf_hub_download(repo_id='user/name')",
    "task-specific-pretraining-of-encoders, risk-adjusted-returns, sk-learn-style-pipelines-and-more",
    "https://user@example.org/path:8080/x@y, git@github.com:user/name.git, http://127.0.0.1:8080/a@b",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "fingerprint: ebb6a1f0c2d34e5f60718293a4b5c6d7, seed=0123456789012345678",
    "basic configurations, bearer of news, a secret: nobody knows the trouble I have seen",
    "AKIAction, AIzawa, npm_config_registry, eyJ, xoxo, pypi-server",
)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_resembles(text):
    """Nothing is found, and nothing changed."""
    assert scan.secrets({"x": text.encode()}, TOKEN) == []
    assert scan.redact(text, TOKEN) == text


def test_the_repository_is_clean():
    """No finding in the project's own files, but for the tests, which plant some."""
    folders = ("configuration", "modeling", "training", "scripts", "recipes", "docs", "hub_cards", "benchmarks")
    suffixes = {".py", ".md", ".yaml", ".json", ".txt", ".png"}
    files = {str(path): path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in suffixes}
    assert len(files) > 100
    found = scan.secrets(files, TOKEN)
    assert found == [], found


def test_tokenizers_are_clean(tmp_path):
    """Vocabularies learnt from code, words and byte pairs: thousands of odd strings and no finding."""
    texts = [path.read_text() for path in sorted((ROOT / "training").rglob("*.py"))]
    for kind in ("wordpiece", "bpe"):
        train_tokenizer(kind, texts, 2000, 64).save_pretrained(tmp_path / kind)
        assert len(json.loads((tmp_path / kind / "tokenizer.json").read_text())["model"]["vocab"]) > 1500
        files = {path.name: path for path in (tmp_path / kind).iterdir()}
        assert scan.secrets(files, TOKEN) == []


@pytest.mark.parametrize("unit", ["sk-", "password=", "://a:", "eyJaaaaaaaaaaa.", "-----BEGIN PRIVATE" + " KEY-----a"])
def test_time_grows_with_the_length_only(unit):
    """Text made to be slow: a hundred times more takes less than a thousand times longer."""

    def seconds(count):
        text = (unit * count)[: count * 4]
        started = time.perf_counter()
        scan.redact(text, TOKEN)
        return time.perf_counter() - started

    assert seconds(50_000) < 1000 * max(seconds(500), 1e-4)
