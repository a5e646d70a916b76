"""AdamW and its learning rate."""

import math

import torch
from torch import nn

from yalm.training.settings import OptimizerSettings, ScheduleSettings


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Fused AdamW in two groups: matrices with weight decay, norms and biases without."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


def learning_rate(tokens: int, lr: float, schedule: ScheduleSettings) -> float:
    """The rate of the step that ends at `tokens` seen: linear up to `lr`, then a cosine to `final_lr_ratio`·lr."""
    if tokens < schedule.warmup_tokens:
        return lr * tokens / schedule.warmup_tokens
    span = max(1, schedule.tokens - schedule.warmup_tokens)
    progress = min(1.0, (tokens - schedule.warmup_tokens) / span)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return lr * (schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * cosine)
