"""Operations on lists of tensors in one call each: torch's, which it keeps under private names."""
# pyright: reportPrivateUsage=false
# torch documents these for its own optimizers and has kept them since 1.8; this is the one place that knows them.

import torch

add_ = torch._foreach_add_
addcmul_ = torch._foreach_addcmul_
div = torch._foreach_div
div_ = torch._foreach_div_
lerp = torch._foreach_lerp
lerp_ = torch._foreach_lerp_
mul_ = torch._foreach_mul_
sqrt = torch._foreach_sqrt
