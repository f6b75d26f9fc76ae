"""Build the fusion that an experiment names."""

from typing import Any, assert_never

from torch import Tensor

from eav_ray.config import Experiment
from eav_ray.models.fusion.base import Fusion
from eav_ray.models.fusion.bottleneck import BottleneckFusion
from eav_ray.models.fusion.gated import GatedFusion
from eav_ray.models.fusion.late_mean import LateMeanFusion
from eav_ray.models.fusion.shared_attention import SharedAttentionFusion
from eav_ray.models.fusion.single_token import SingleTokenFusion


def build_fusion(experiment: Experiment, widths: dict[str, int], times_s: dict[str, Tensor], n_outputs: int) -> Fusion:
    """Fusion of tokens of these widths and times, (N_m,) seconds; it needs no encoder, so a search builds it alone."""
    f, window_s = experiment.fusion, experiment.preprocessing.window_s
    common_arguments: dict[str, Any] = {"n_outputs": n_outputs, "dropout": f.dropout}
    token_arguments: dict[str, Any] = {
        "width": f.width,
        "heads": f.heads,
        "pooled": f.input == "pooled",
        "positions": f.positions,
        "window_s": window_s,
    }
    match f.kind:
        case "late_mean":
            fusion = LateMeanFusion()
        case "shared_attention":
            fusion = SharedAttentionFusion(
                widths,
                times_s,
                late_fusion_residual=f.late_fusion_residual,
                n_query_steps=f.n_query_steps,
                **common_arguments,
                **token_arguments,
            )
        case "bottleneck":
            fusion = BottleneckFusion(
                widths, times_s, depth=f.depth, bottlenecks=f.bottlenecks, **common_arguments, **token_arguments
            )
        case "gated":
            fusion = GatedFusion(widths, width=f.width, **common_arguments)
        case "single_token":
            fusion = SingleTokenFusion(widths, heads=f.heads, **common_arguments)
        case _:
            assert_never(f.kind)
    fusion.weight_loss = f.modality_weight_loss
    return fusion
