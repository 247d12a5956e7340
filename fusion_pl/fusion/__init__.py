"""Fusion heads, one per file. A fusion head computes class logits from the outputs of the encoders."""

from fusion_pl.fusion.average import Average
from fusion_pl.fusion.base import Fusion
from fusion_pl.fusion.bi_lstm import BiLSTM
from fusion_pl.fusion.bilinear import Bilinear
from fusion_pl.fusion.block import Block
from fusion_pl.fusion.bottleneck import Bottleneck
from fusion_pl.fusion.concat import Concat
from fusion_pl.fusion.cross_attention import CrossAttention
from fusion_pl.fusion.deep_set import DeepSet
from fusion_pl.fusion.evidential import Evidential
from fusion_pl.fusion.experts import Experts
from fusion_pl.fusion.film import FiLM
from fusion_pl.fusion.gated import Gated
from fusion_pl.fusion.graph import Graph
from fusion_pl.fusion.hyper_network import HyperNetwork
from fusion_pl.fusion.input_attention import InputAttention
from fusion_pl.fusion.low_rank import LowRank
from fusion_pl.fusion.max import Max
from fusion_pl.fusion.mean import Mean
from fusion_pl.fusion.multiplicative_interactions import MultiplicativeInteractions
from fusion_pl.fusion.pairwise import Pairwise
from fusion_pl.fusion.perceiver import Perceiver
from fusion_pl.fusion.product import Product
from fusion_pl.fusion.product_of_experts import ProductOfExperts
from fusion_pl.fusion.quality_aware import QualityAware
from fusion_pl.fusion.self_attention import SelfAttention
from fusion_pl.fusion.stacking import Stacking
from fusion_pl.fusion.sum import Sum
from fusion_pl.fusion.tensor_fusion import TensorFusion
from fusion_pl.fusion.vote import Vote
from fusion_pl.fusion.weighted import Weighted

__all__ = [
    "Average",
    "BiLSTM",
    "Bilinear",
    "Block",
    "Bottleneck",
    "Concat",
    "CrossAttention",
    "DeepSet",
    "Evidential",
    "Experts",
    "FiLM",
    "Fusion",
    "Gated",
    "Graph",
    "HyperNetwork",
    "InputAttention",
    "LowRank",
    "Max",
    "Mean",
    "MultiplicativeInteractions",
    "Pairwise",
    "Perceiver",
    "Product",
    "ProductOfExperts",
    "QualityAware",
    "SelfAttention",
    "Stacking",
    "Sum",
    "TensorFusion",
    "Vote",
    "Weighted",
]
