"""ntkp2p: peer-to-peer training of wide neural networks, predicted in closed form and proved beside real training.

A name is imported when it is first asked for, so that `import ntkp2p` and `ntkp2p --help` do not wait for JAX. The
names are those that `__init__.pyi` imports: add a line there.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
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
    return import_module(f"{home}.{name}") if home == __name__ else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Here `compare` is the function, although its module has the same name.

    Python sets every module that is imported on its package.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        is_home = isinstance(value, ModuleType) and value.__name__ == _HOMES.get(name)
        super().__setattr__(name, getattr(value, name) if is_home else value)


sys.modules[__name__].__class__ = _Package
