"""The sizes of a network; free of torch, so that what only reckons with them answers at once."""

from typing import Self

from pydantic import Field, model_validator

from yalm.config import Settings


class ModelConfig(Settings):
    """The sizes of a network; with the weights, all there is to know about it."""

    vocab_size: int = Field(gt=0)
    embedding_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    intermediate_padding: int = Field(default=0, ge=0)
    """How much of the width are zeros that a converter added: no output depends on it, and it can be undone."""
    max_positions: int = Field(default=1024, gt=0)
    rotary_base: float = Field(default=10_000.0, gt=0)
    layer_norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 x num_heads ({self.num_heads}): "
                "rotary positions turn pairs inside each head"
            )
        if self.embedding_size > self.hidden_size:
            raise ValueError(f"embedding_size {self.embedding_size} must not exceed hidden_size {self.hidden_size}")
        if self.intermediate_padding >= self.intermediate_size:
            raise ValueError(
                f"intermediate_padding {self.intermediate_padding} must be less than intermediate_size "
                f"{self.intermediate_size}, of which it is a part"
            )
        return self

    @property
    def head_size(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def unpadded_intermediate_size(self) -> int:
        """The feed-forward width that the model was trained with."""
        return self.intermediate_size - self.intermediate_padding
