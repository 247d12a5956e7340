from __future__ import annotations

import torch

from fusion_pl.fusion import DeepSet

from .reference import PRESENT, mlp, norm, projected_embeddings, randomised, zeros


def test_equals_its_formula(dims, make):
    head, inputs = randomised(DeepSet(dims, num_classes=4, dim=6)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        z = zeros(6)
        for m, u in projected_embeddings(head, inputs, row).items():
            z = z + mlp(head.transform, u + head.embedding[m])
        torch.testing.assert_close(fused.embedding[row], norm(head.norm, z))
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, norm(head.norm, z)))


def test_without_input_embeddings_the_order_does_not_matter(dims, make):
    """Without input embeddings, permuted inputs have the same result."""
    equal = dict.fromkeys(dims, 6)
    head, (first, second, third) = randomised(DeepSet(equal, num_classes=4)), equal
    for name in (second, third):
        head.projection[name].load_state_dict(head.projection[first].state_dict())
    one, two, three = (make([[1]] * 4, seed=seed)["título"] for seed in range(3))
    given, turned = {first: one, second: two, third: three}, {first: three, second: one, third: two}
    assert not torch.allclose(head(given).logits, head(turned).logits)
    with torch.no_grad():
        head.embedding.zero_()
    torch.testing.assert_close(head(given).logits, head(turned).logits)
