"""The one network written by hand: a narrow pre-activation ResNet for any width, number of channels and input size.

RobustBench's ``PreActResNet`` fixes the widths at 64 to 512 and pools by 4×4, so it takes 3×32×32 images only. The
blocks here are RobustBench's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ccf_plugin.zoo.robustbench_models import robustbench_resnets


class NarrowPreActResNet(nn.Module):
    """Four stages of pre-activation blocks of ``width`` × 1, 2, 4 and 8 channels, adaptive pooling, a linear head.

    With width 64 on 3×32×32 images it computes what RobustBench's ``PreActResNet(PreActBlock, blocks,
    bn_before_fc=True, out_shortcut=True)`` does, and shares its parameter names. forward: (N, C, H, W) → (N, K).
    """

    def __init__(self, *, num_classes: int, channels: int = 3, width: int = 16, blocks: Sequence[int] = (2, 2, 2, 2)):
        super().__init__()
        block = robustbench_resnets().PreActBlock
        planes = width
        self.conv1 = nn.Conv2d(channels, planes, kernel_size=3, padding=1, bias=False)
        for stage, count in enumerate(blocks):
            out_planes = width * 2**stage
            layers = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                layers.append(block(planes, out_planes, stride, out_shortcut=True))
                planes = out_planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.bn = nn.BatchNorm2d(planes)
        self.linear = nn.Linear(planes, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv1(images)
        for stage in range(self.stages):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        out = F.relu(self.bn(out))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits
