"""What other libraries add. `codecllm.integrations` fills these lists; nothing here knows by what.

No torch is imported here, because `import codecllm` imports this file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .skeleton import Skeleton

skeleton_builders: list[Callable[[Path], Skeleton]] = []
"""Each makes the model of a checkpoint folder without its weights, or raises any Exception."""

after_compressing: list[Callable[[nn.Module], None]] = []
"""Called with every model that compress_model_weights() has compressed in place."""
