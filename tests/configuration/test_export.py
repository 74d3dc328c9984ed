"""The code that a configuration writes beside a model."""

import re

import pytest
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from triune.configuration import preset
from triune.configuration.export import export_code, source_files
from triune.modeling import TriuneForCausalLM


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}


def code_of(folder):
    return {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.py")}


def test_export_writes_every_source_once(tmp_path):
    """The files of both packages under their own names, equal but for the one import; again without harm."""
    export_code(tmp_path / "new" / "folder")
    written = export_code(tmp_path / "new" / "folder")
    assert [file.name for file in written] == [file.name for file in source_files()]
    for source, copy in zip(source_files(), written):
        changed = [
            (old, new)
            for old, new in zip(source.read_text().splitlines(), copy.read_text().splitlines(), strict=True)
            if old != new
        ]
        for old, new in changed:
            assert old.startswith("from triune.configuration.configuration_") and new.startswith(
                "from .configuration_"
            )


def test_a_copy_writes_itself(tmp_path, monkeypatch):
    """A model whose class comes from a folder, not from an auto class, takes that folder's code along when saved, even
    where another version of Triune is installed."""
    TriuneForCausalLM(preset("gpt2-mini", **TINY, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path / "first")
    file = tmp_path / "first" / "norms.py"
    file.write_text(file.read_text() + "\n# of another version\n")
    remote = get_class_from_dynamic_module("modeling_triune.TriuneForCausalLM", str(tmp_path / "first"))
    model = remote.from_pretrained(tmp_path / "first")
    assert type(model).__module__.startswith("transformers_modules.")
    model.save_pretrained(tmp_path / "second")
    assert code_of(tmp_path / "second") == code_of(tmp_path / "first")


def test_a_file_in_the_way(tmp_path):
    """The path is named."""
    (tmp_path / "taken").write_text("x")
    with pytest.raises(NotADirectoryError, match="taken"):
        export_code(tmp_path / "taken")


def test_only_what_a_model_needs_travels(tmp_path):
    """The files that its modules reach: against the imports that Python itself makes of the copy, one by one."""
    names = {file.name for file in export_code(tmp_path, ["configuration_triune", "modeling_triune"])}
    assert {"transformer.py", "configuration_card.py", "heads.py"} < names
    assert "configuration_composite.py" not in names
    for file in tmp_path.glob("*.py"):
        for name in re.findall(r"^from \.(\w+) import", file.read_text(), flags=re.MULTILINE):
            assert f"{name}.py" in names, (file.name, name)
