"""Write the code of the model family into a folder, flat: what lets a saved model load where Triune is not installed.

transformers loads remote code from files that lie side by side and import each other as `from .x import y`. In the
repository the configuration and the modeling files are two packages; here they become one folder, and the one import
that crosses between them loses its prefix. Standard library only: this runs on every save.
"""

import re
from collections.abc import Iterable
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
CROSSING = re.compile(r"^from triune\.configuration\.(\w+) import", re.MULTILINE)
NEIGHBOUR = re.compile(r"^from (?:\.|triune\.configuration\.)(\w+) import", re.MULTILINE)


def source_files() -> list[Path]:
    """The files that travel: every configuration and all of modeling, but no package's `__init__`."""
    files = [*ROOT.glob("configuration/configuration_*.py"), *ROOT.glob("modeling/*.py")]
    return sorted(file for file in files if file.name != "__init__.py")


def reached(modules: Iterable[str]) -> list[Path]:
    """The files of these modules, and those that they import, directly or not: what a model of them needs."""
    known = {file.stem: file for file in source_files()}
    found, ahead = set(), list(modules)
    while ahead:
        name = ahead.pop()
        if name in known and name not in found:
            found.add(name)
            ahead += NEIGHBOUR.findall(known[name].read_text(encoding="utf-8"))
    return [file for name, file in known.items() if name in found]


def export_code(folder, modules: Iterable[str] | None = None) -> list[Path]:
    """Write the flat files into `folder`, which is made if need be, and return their paths. `modules`: those that are
    asked for, with what they import; without it all of the family."""
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"the code of the model needs a folder, and {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in source_files() if modules is None else reached(modules):
        target = folder / source.name
        target.write_text(CROSSING.sub(r"from .\1 import", source.read_text(encoding="utf-8")), encoding="utf-8")
        written.append(target)
    return written
