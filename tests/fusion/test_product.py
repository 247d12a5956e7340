from __future__ import annotations

import torch

from fusion_pl.fusion import Product

from .reference import PRESENT, mlp, norm, projected_embeddings, randomised, zeros


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Product(dims, num_classes=4, dim=7)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        product = zeros(7) + 1
        for u in projected_embeddings(head, inputs, row).values():
            product = product * (1 + u)
        z = norm(head.norm, product)
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_a_missing_input_is_neutral(dims, make):
    head, inputs = randomised(Product(dims, num_classes=4)), make([[1, 0, 1]] * 5)
    remaining = {name: dim for m, (name, dim) in enumerate(dims.items()) if m != 1}
    smaller = Product(remaining, num_classes=4).double().eval()
    smaller.load_state_dict({key: value for key, value in head.state_dict().items() if "my photo" not in key})
    torch.testing.assert_close(head(inputs).logits, smaller({name: inputs[name] for name in remaining}).logits)


def test_one_input_can_zero_a_channel(dims, make):
    head, inputs = Product(dims, num_classes=4, dim=7).double().eval(), make([[1, 1, 1]] * 2)
    first = head.projection["título"].linear
    with torch.no_grad():
        first.weight[3] = 0
        first.bias[3] = -1  # 1 + u = 0, whatever the others say
    other = make([[1, 1, 1]] * 2, seed=1)
    head.norm = torch.nn.Identity()
    for changed in (inputs, inputs | {"my photo": other["my photo"], "voice-2": other["voice-2"]}):
        embedding = head(changed).embedding
        assert (embedding[:, 3] == 0).all()
        assert (embedding[:, [0, 1, 2, 4, 5, 6]] != 0).all()
