"""Named sizes, from one that trains in minutes on a laptop's CPU to the released model.

Feed-forward widths are 8/3 of the hidden size, so that three GeGLU matrices weigh what two of width 4 do, rounded up
to a multiple of 128 where tensor cores matter; `yalm-100b` keeps the released 27,308.
"""

from yalm.config import nearest
from yalm.errors import YalmError
from yalm.model.config import ModelConfig


def _preset(
    vocab: int, embedding: int, hidden: int, layers: int, heads: int, intermediate: int, positions: int
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        embedding_size=embedding,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=intermediate,
        max_positions=positions,
    )


#                       vocabulary embedding hidden layers heads feed-forward positions
PRESETS: dict[str, ModelConfig] = {
    "demo": _preset(4_096, 192, 192, 4, 4, 512, 128),
    "25m": _preset(16_384, 384, 512, 6, 8, 1_376, 512),
    "125m": _preset(64_000, 512, 768, 12, 12, 2_048, 1_024),
    "350m": _preset(64_000, 512, 1_024, 24, 16, 2_816, 1_024),
    "1.3b": _preset(128_000, 1_024, 2_048, 24, 16, 5_504, 1_024),
    "3b": _preset(128_000, 1_024, 2_560, 32, 32, 6_912, 1_024),
    "13b": _preset(128_000, 1_280, 5_120, 40, 40, 13_696, 1_024),
    "yalm-100b": _preset(128_000, 2_048, 10_240, 80, 128, 27_308, 1_024),
}


def preset(name: str) -> ModelConfig:
    """The sizes of that name; YalmError with the nearest name if there is none."""
    if name not in PRESETS:
        raise YalmError(f"preset {name!r} does not exist{nearest(name, list(PRESETS))}")
    return PRESETS[name]
