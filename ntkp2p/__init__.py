"""ntkp2p: peer-to-peer training of wide neural networks, predicted in closed form and proved beside real training.

A name is imported when it is first asked for, so that `import ntkp2p` and `ntkp2p --help` do not wait for JAX. The
names are those that `__init__.pyi` imports: add a line there.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
#: Each public name and the module that it is imported from.
_HOMES = {name.name: str(line.module) for line in _STUB.body if isinstance(line, ast.ImportFrom) for name in line.names}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    exported = None if home == __name__ else getattr(import_module(home), name, None)
    return import_module(f"{home}.{name}") if exported is None else exported


def __dir__() -> list[str]:
    return list(__all__)
