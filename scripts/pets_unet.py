"""The network of the next pets DDPMs. It moves into the package when its weights are shipped."""

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from cyclediff.diffusion.denoiser import blend_x0
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas

SIZE = 64
PATCH = 4
FEATURES = 16  # channels that the patch network gives the detail network, besides its picture
WIDTH = 64  # of the detail network
COARSE_ERROR = 0.08  # root mean squared error of the patch network on almost clean images


class PetsDenoisingUNet(nn.Module):
    """x0 from x_t at 64×64: a UNet on 4×4 patches draws the picture, convolutions on 2×2 patches finish it.

    The convolutions see the patch network's picture and features, the picture blended with x_t (at low noise x_t is
    the better estimate), and the noise level. On 2×2 patches they cost a quarter of what they would on pixels.
    """

    alpha_bar: Tensor

    def __init__(self):
        super().__init__()
        self.coarse = UNet2DModel(
            sample_size=SIZE // PATCH,
            in_channels=3 * PATCH**2,
            out_channels=3 * PATCH**2 + 4 * FEATURES,
            layers_per_block=1,
            block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            norm_num_groups=32,
        )
        self.enter = nn.Conv2d(12 + 12 + FEATURES + 1, WIDTH, 3, padding=1)
        self.middle = nn.Sequential(
            nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
        self.leave = nn.Sequential(nn.SiLU(), nn.Conv2d(WIDTH, 12, 3, padding=1))
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("alpha_bar", alpha_bar_from_betas(linear_betas()), persistent=False)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict x0, (n, 3, 64, 64); t is int64 (n,)."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        drawn = F.pixel_shuffle(self.coarse(F.pixel_unshuffle(xt, PATCH), t).sample, 2)
        coarse, pairs = drawn[:, :12], F.pixel_unshuffle(xt, 2)
        level = (1 / alpha_bar - 1).log().to(xt).expand_as(pairs[:, :1]) / 8
        trusted = alpha_bar.clamp(max=1 / (1 + COARSE_ERROR**2))  # a sampler's state is never cleaner than this
        scaled = alpha_bar.rsqrt().to(xt) * trusted.sqrt().to(xt) * pairs
        blend = blend_x0(scaled, coarse, trusted, COARSE_ERROR)
        hidden = self.enter(torch.cat((blend, drawn, level), dim=1))
        return F.pixel_shuffle(blend + self.leave(hidden + self.middle(hidden)), 2)
