"""Compiled programs kept between processes, by JAX's persistent compilation cache.

The command line keeps them by default; in Python, `ntkp2p.keep_compiled()` does.
"""

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import platformdirs

from ntkp2p import __version__

#: The environment variable that names another folder, or switches the cache off.
VARIABLE = "NTKP2P_COMPILED"
OFF = ("", "0", "off", "no", "false")
#: Bytes that the folder may take: beyond, JAX removes what has not been used for longest.
LARGEST = 2**28


def keep_compiled(folder: str | os.PathLike[str] | None = None, /) -> Path | None:
    """Keep compiled programs in a folder, so that later processes do not compile them again.

    Programs of other versions of JAX and ntkp2p, of other processors and of other XLA flags are kept apart. Several
    processes may share the folder. A program that cannot be read is compiled again.

    Parameters
    ----------
    folder
        By default the environment variable `NTKP2P_COMPILED`, or else the user's cache folder; "off" in that variable
        switches the cache off.

    Returns
    -------
    Path or None
        The folder in use: JAX's own where `jax_compilation_cache_dir` is set already. None if the cache is off or the
        folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import ntkp2p as p2p
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     p2p.keep_compiled(folder)
    """
    if (own := in_use()) is not None:
        return own
    chosen = os.environ.get(VARIABLE) if folder is None else folder
    if folder is None and chosen is not None and str(chosen).lower() in OFF:
        return None
    try:
        parent = Path(chosen) if chosen is not None else platformdirs.user_cache_path("ntkp2p") / "compiled"
        kept = parent / _machine()
        kept.mkdir(parents=True, exist_ok=True)
        if not os.access(kept, os.W_OK):
            return None
    except (OSError, RuntimeError):  # no home, or a folder that is a file
        return None
    use(kept)
    return kept


def use(folder: Path, /) -> None:
    """Make `folder` JAX's compilation cache in this process, whatever a program took to compile."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)  # with a limit, JAX locks the folder while it writes
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def in_use() -> Path | None:
    """The folder that this process keeps compiled programs in, if it does."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return None if folder is None else Path(folder)


def _machine() -> str:
    """A name for what a compiled program depends on beside itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    except OSError:
        processor = [platform.processor()]
    facts = (__version__, jax.__version__, version("jaxlib"), platform.machine(), os.environ.get("XLA_FLAGS", ""))
    return hashlib.blake2b(repr((facts, processor)).encode(), digest_size=8).hexdigest()
