"""Scripts and benchmarks are files and no package: tests import them by their path."""

import importlib.util
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).resolve().parent.parent


def load_script(path: str) -> ModuleType:
    """A module of its own for each call; the path starts at the root of the repository."""
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_script", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
