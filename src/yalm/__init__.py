"""openyalm: the open, end-to-end YaLM system. `yalm.load(DIR)` opens a model folder; see `yalm --help`."""

from typing import TYPE_CHECKING, Any

from yalm.errors import YalmError

if TYPE_CHECKING:
    from yalm.inference.language_model import LanguageModel
    from yalm.inference.loading import load

__all__ = ["LanguageModel", "YalmError", "load"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are asked for, so that `import yalm` is instant."""
    if name in __all__:
        from yalm.inference import language_model, loading

        return {"LanguageModel": language_model.LanguageModel, "load": loading.load}[name]
    raise AttributeError(f"module 'yalm' has no attribute {name!r}")
