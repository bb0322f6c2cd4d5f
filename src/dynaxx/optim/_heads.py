"""Finds the parameters in which the queries, keys and values of all attention heads lie one above the other."""

from torch import nn

_COUNTS = ("num_heads", "num_attention_heads", "n_head", "n_heads", "heads")
"""What attention modules call their number of heads, in this order."""


def fused_heads(model: nn.Module) -> dict[str, int]:
    """Parameters that hold the projections of all heads ↦ how many matrices they are: three a head.

    torch's own attention says so. Any other module is believed that counts its heads in an attribute of a usual name
    and has a `nn.Linear` with three times as many outputs as inputs. Projections in which several queries share their
    keys and values are left as they are.

    Args:
        model: The model.

    Returns:
        Name of the parameter ↦ 3 · heads.

    Example:
        >>> fused_heads(nn.TransformerEncoderLayer(d_model=8, nhead=2))
        {'self_attn.in_proj_weight': 6}
    """
    found: dict[str, int] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is not None:  # None where keys or values are of another width
                found[f"{prefix}in_proj_weight"] = 3 * module.num_heads
            continue
        heads = next((n for name in _COUNTS if isinstance(n := getattr(module, name, None), int) and n > 0), 0)
        for name, child in module.named_children() if heads else ():
            if not isinstance(child, nn.Linear):
                continue
            if child.out_features == 3 * child.in_features and child.in_features % heads == 0:
                found[f"{prefix}{name}.weight"] = 3 * heads
    return found
