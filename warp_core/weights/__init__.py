"""What the sliders do: checkpoints, geometry, recipes, streamed and resident merges, export.

headers.py, tensor_io.py, folders.py     safetensors files: strict headers, piecewise reading and writing, safe paths
architecture.py, lora_config.py          what must agree between checkpoints
checkpoints.py, opening.py, check.py     open a model folder, or by a name; list everything that is wrong with one
layers.py, geometry.py, grams.py         layers, the Gram matrix and what follows from it, its computation
recipes.py, coefficients.py              the definition of a merge, and the method: SLERP, LERP, eq. 26, LITI
adapters.py, adapter_folder.py           low-rank factors: exact merges of LoRA adapters
blend.py, streamed.py, resident.py       the arithmetic of a merge: to disk piece by piece, and in memory in place
workers.py, staging.py                   pieces of tensors, a core each; from the host to a device ahead of their use
shards.py, model_files.py                what an exported folder holds beside the tensors
"""

from warp_core.weights.adapter_folder import write_adapter
from warp_core.weights.adapters import AdapterFactors, merge_adapters, read_adapter
from warp_core.weights.check import check_checkpoint
from warp_core.weights.checkpoints import Checkpoint, SourceFile, adapter_base_name, open_checkpoint, require_mixable
from warp_core.weights.coefficients import Coefficients, coefficients, slerp_coefficients, slerp_pair
from warp_core.weights.geometry import Geometry, LayerInfo
from warp_core.weights.grams import compute_geometry
from warp_core.weights.layers import layer_of
from warp_core.weights.recipes import Recipe, make_recipe
from warp_core.weights.resident import ResidentMerge
from warp_core.weights.streamed import MergeReport, merge_to_folder

__all__ = [
    "AdapterFactors",
    "Checkpoint",
    "Coefficients",
    "Geometry",
    "LayerInfo",
    "MergeReport",
    "Recipe",
    "ResidentMerge",
    "SourceFile",
    "adapter_base_name",
    "check_checkpoint",
    "coefficients",
    "compute_geometry",
    "layer_of",
    "make_recipe",
    "merge_adapters",
    "merge_to_folder",
    "open_checkpoint",
    "read_adapter",
    "require_mixable",
    "slerp_coefficients",
    "slerp_pair",
    "write_adapter",
]
