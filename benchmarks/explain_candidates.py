"""Methods that ``fusion-pl explain`` does not offer, so that ``benchmarks.explain`` can measure them beside the others.

Each has the arguments of ``fusion_pl.explain.occlusion.occlusion``.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from inspect import signature

import numpy as np
import torch

from fusion_pl.attention import Attention, TransformerLayer
from fusion_pl.data.collate import process_values
from fusion_pl.encoders.tiny_audio import HOP, MIN_POWER, WINDOW
from fusion_pl.explain.explanation import PartEffects
from fusion_pl.explain.gradients import DifferentiableInput, differentiable_input, effects_of_spans, integrate
from fusion_pl.fusion import Bottleneck, CrossAttention, Perceiver, SelfAttention

ATTENTION_HEADS = (SelfAttention, CrossAttention, Bottleneck, Perceiver)
PATCH = 8  # pixels per token of TinyImage
TOKEN_SECONDS = 4 * HOP  # of TinyAudio


def gradient_x_input(scores, name, index):
    """Return ``(x - b) ∘ ∇f(x)``, with the baselines b of integrated gradients, and silence for sounds."""
    found = log_mel(scores, name, index, "silence") if name == "audio" else differentiable_input(scores, name, index)
    x = found.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(found.log_odds(x).sum(), x)
    return _effects(scores, name, (gradient * (found.x - found.baseline))[0], found.positions)


def integrated_gradients_from_silence(scores, name, index):
    """Return the integrated gradients of the log-mel spectrogram of a sound, from silence."""
    return _integrate_sound(scores, name, index, "silence")


def integrated_gradients_from_mean(scores, name, index):
    """Return the integrated gradients of the log-mel spectrogram of a sound, from its mean over time."""
    return _integrate_sound(scores, name, index, "mean")


def attention_rollout(scores, name, index):
    r"""Return the share of each token of an input in the joint embedding, by attention roll-out through the head.

    ``x' = x / 2 + A x / 2`` for every layer, with the attention weights A of the sample, averaged over attention heads;
    norms and MLPs are left out. The head is then a linear map of the tokens, the same for every channel, so that the
    gradient of one channel of the embedding is the share of each token. It is the same for every class.

    Source: "Quantifying Attention Flow in Transformers", arXiv:2005.00928, equation 1.
    """
    del index
    model, weights = scores.predictor.model, []
    head = model.fusion
    layers = [module for module in head.modules() if isinstance(module, TransformerLayer)]
    with torch.no_grad(), ExitStack() as hooks:
        for layer in layers:
            record = layer.attention.register_forward_pre_hook(lambda *call: weights.append(attention_weights(*call)))
            hooks.enter_context(record)
        model.fuse(scores.encoded)
    tokens = [sequence.detach().requires_grad_() for sequence in head.projection(scores.encoded)]
    order = iter(weights)

    def mix(layer, args, kwargs, _):
        call = signature(layer.forward).bind(*args, **kwargs).arguments
        x, context = call["x"], call.get("context", call["x"])
        return (x[:, : call.get("num_queries")] + next(order) @ context) / 2

    with ExitStack() as hooks:
        hooks.enter_context(head.projection.register_forward_hook(lambda *_: list(tokens)))
        hooks.enter_context(head.norm.register_forward_hook(lambda norm, args, _: args[0]))
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(mix, with_kwargs=True))
        embedding = model.fuse(scores.encoded).embedding
    place = head.names.index(name)
    (gradient,) = torch.autograd.grad(embedding[0, 0], tokens[place])
    shares = gradient[0, :, :1]
    processor, value = scores.predictor.processors[name], scores.sample.inputs[name]
    if name == "image":  # one part per token: cells are smaller
        side = math.isqrt(len(shares))
        spans = [((PATCH * i, PATCH * (i + 1)), (PATCH * j, PATCH * (j + 1))) for i in range(side) for j in range(side)]
        return PartEffects(dict(zip(spans, shares[:, 0].tolist(), strict=True)))
    starts = TOKEN_SECONDS * np.arange(len(shares))
    positions = processor.positions(value) or [np.stack([starts, starts + TOKEN_SECONDS], 1)]
    return PartEffects(effects_of_spans(shares, positions, processor.spans(value)))


def attention_weights(attention: Attention, arguments):
    """Return the attention weights (B, S, R) of one call, averaged over the attention heads."""
    x, context, mask = arguments
    query = attention.query(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    key = attention.key_value(context).unflatten(-1, (2, attention.num_heads, -1))[..., 0, :, :].transpose(1, 2)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~mask.unsqueeze(1), -math.inf).softmax(-1).mean(1)


def log_mel(scores, name, index, baseline) -> DifferentiableInput:
    """Return the log-mel spectrogram of a sound that ``TinyAudio`` encodes, (1, T, K)."""
    encoder, processor = scores.encoder(name), scores.predictor.processors[name]
    arguments = process_values(processor, name, [scores.sample.inputs[name]], [scores.sample.id])
    with torch.no_grad():
        x, mask = encoder.spectrogram(**arguments)
    silence = torch.full_like(x, math.log(MIN_POWER))
    centres = HOP * np.arange(x.shape[1]) + WINDOW / 2
    positions = [np.stack([centres - HOP / 2, centres + HOP / 2], 1)]

    def log_odds(rows):
        with encoder.spectrogram.register_forward_hook(lambda *_: (rows, mask.expand(len(rows), -1))):
            replaced = encoder(
                **{key: tensor.expand(len(rows), *tensor.shape[1:]) for key, tensor in arguments.items()}
            )
        return scores.log_odds(scores.fuse_with(name, replaced), index)

    baselines = {"silence": silence, "mean": x.mean(1, keepdim=True).expand_as(x)}
    return DifferentiableInput(x, baselines[baseline], log_odds, positions)


def _integrate_sound(scores, name, index, baseline):
    found = log_mel(scores, name, index, baseline)
    attributions, _, _ = integrate(found.log_odds, found.x, found.baseline)
    return _effects(scores, name, attributions, found.positions)


def _effects(scores, name, attributions, positions):
    spans = scores.predictor.processors[name].spans(scores.sample.inputs[name])
    return PartEffects(effects_of_spans(attributions, positions, spans))


# method -> function and the inputs that it applies to; a roll-out is measured with every head of ATTENTION_HEADS
CANDIDATES = {
    "gradient x input": (gradient_x_input, ("text", "image", "audio")),
    "integrated gradients from silence": (integrated_gradients_from_silence, ("audio",)),
    "integrated gradients from the mean": (integrated_gradients_from_mean, ("audio",)),
}
