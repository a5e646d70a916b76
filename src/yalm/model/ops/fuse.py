"""The network's layers by our Triton kernels, from outside: `fuse` replaces their forward and leaves all else.

A layer is then its matrix products, attention, and four kernels each way: input norm; rotary; residual, bias and norm;
bias and GeGLU. The definition stays `network.Layer`, which it must agree with. Weights are read from the modules at
each use, so what gathers or casts them (FSDP2) and what recomputes a layer work as before. Modules inside a fused layer
are not called themselves, but for the input norm and the projections whose bias is not fused: hooks on the others stay
silent.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from yalm.errors import YalmError
from yalm.model.network import Attention, Layer, Rotary, Yalm


def fuse(model: Yalm) -> None:
    """Let our kernels compute the layers and every LayerNorm, in place, on a GPU. YalmError without Triton.

    Layers whose linears are something else's (float8) keep all but the norms.
    """
    try:
        from yalm.model.ops.layer_norm import layer_norm
    except ImportError:
        raise YalmError("compute.fused needs Triton; pip install triton, or set compute.fused=false") from None

    def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
        return layer_norm(x, module.weight, module.bias, module.eps)

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = partial(norm, module)  # type: ignore[method-assign]
        elif isinstance(module, Layer) and not any(_is_foreign(part) for part in module.modules()):
            module.forward = partial(_layer, module)  # type: ignore[method-assign]


def _is_foreign(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module) is not nn.Linear


def _layer(layer: Layer, x: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
    """See `network.Layer`: (B, S, H) to (B, S, H)."""
    from yalm.model.ops.geglu import geglu
    from yalm.model.ops.layer_norm import add_layer_norm
    from yalm.model.ops.rotary import split_rotary

    attend, norm, mlp = layer.self_attn, layer.post_attention_layernorm, layer.mlp
    batch, seq, _ = x.shape
    qkv = attend.qkv_proj(layer.input_layernorm(x)).view(batch, seq, -1, 3, attend.head_size)
    query, key, value = (part.transpose(1, 2) for part in split_rotary(qkv, rotary.cos, rotary.sin))
    context = attention(query, key, value, attend.layer).transpose(1, 2).reshape(batch, seq, -1)
    branch = F.linear(context, attend.o_proj.weight)
    x, normed = add_layer_norm(x, branch, attend.o_proj.bias, norm.weight, norm.bias, norm.eps)
    gate, up = F.linear(normed, mlp.gate_proj.weight), F.linear(normed, mlp.up_proj.weight)
    output: Tensor = x + mlp.down_proj(geglu(gate, up, mlp.gate_proj.bias, mlp.up_proj.bias))
    return output
