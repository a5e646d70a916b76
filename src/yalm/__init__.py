"""openyalm: the open, end-to-end YaLM system. `yalm.load(DIR)` opens a model folder; see `yalm --help`."""

from typing import TYPE_CHECKING, Any

from yalm.errors import YalmError

if TYPE_CHECKING:
    from yalm.inference.language_model import LanguageModel, load

__all__ = ["LanguageModel", "YalmError", "load"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are asked for, so that `import yalm` is instant."""
    if name in ("LanguageModel", "load"):
        from yalm.inference import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'yalm' has no attribute {name!r}")
