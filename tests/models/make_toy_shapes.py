"""Train ``toy-shapes``: a Stable Diffusion pipeline that paints what a caption of shapes says.

    python tests/models/make_toy_shapes.py FOLDER

Pictures are drawn here: six shapes in eight colours on eight backgrounds, at 64 x 64. It takes
about 35 minutes of CPU; ``--effort 0.01`` shows in a minute that everything works.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from blip_node.runtimes.environment import WORKER_ENV

os.environ.update(WORKER_ENV)

import diffusers
import numpy
import torch
import torch.nn.functional as functional
import transformers
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers.convert_slow_tokenizer import bytes_to_unicode

SIDE = 64
#: Tokens of the text encoder's window.
WINDOW = 16

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (250, 220, 40),
    "orange": (255, 140, 0),
    "purple": (140, 50, 180),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "heart")
#: Radii as shares of half a side.
SIZES = {"small": 0.42, "": 0.62, "large": 0.80}
_OTHER_WORDS = ("a", "on", "background", "the", "of", "and", "picture", "photo", "with")

#: Pictures that are drawn for a stage of the training.
PICTURES = 6144

#: CPU seconds of each stage at full effort. The decoder is trained on after the encoder is done,
#: so that it forgives latents that are not quite those of any picture.
VAE_SECONDS, DECODER_SECONDS = 265, 150
#: The denoiser sees two sets of pictures, the second at half the learning rate.
UNET_SECONDS = (940, 760)

#: Captions that are checked in the end, and how many must come out right before it is saved.
CHECKED, RIGHT = 40, 36

_y, _x = (numpy.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE * 2 - 1


class Scene(NamedTuple):
    """What a picture shows."""

    colour: str
    background: str
    shape: str
    size: str

    def __str__(self) -> str:
        words = ("a", self.size, self.colour, self.shape, "on a", self.background, "background")
        return " ".join(word for word in words if word)


def distance(shape: str, x: Any, y: Any) -> Any:
    """Return how far points lie outside of a shape of radius 1, negative inside; y points down."""
    if shape == "circle":
        return numpy.hypot(x, y) - 1
    if shape == "square":
        return numpy.maximum(abs(x), abs(y)) - 0.86
    if shape == "ring":
        return abs(numpy.hypot(x, y) - 0.75) - 0.24
    if shape == "triangle":
        return numpy.maximum(abs(x) * 0.894 - y * 0.447 - 0.52, y - 0.8)
    if shape == "star":
        angle = numpy.arctan2(x, -y)
        turn = 2 * math.pi / 5
        within = numpy.mod(angle + turn / 2, turn) - turn / 2
        edge = numpy.cos(within) + abs(numpy.sin(within)) * 1.38
        return (numpy.hypot(x, y) * edge - 0.95 * 0.95) * 0.6
    across, up = abs(x) * 1.05, -y * 1.05 + 0.15  # a heart
    lobe = up - 0.62 * numpy.sqrt(numpy.maximum(across, 1e-6))
    return (across * across + lobe**2 - 0.72) * 0.5


def draw(scene: Scene, rng: Any) -> Any:
    """Return a picture as float32 [64, 64, 3] from -1 to 1; size and place vary a little."""
    radius = SIZES[scene.size] * (1 + rng.uniform(-0.06, 0.06))
    room = max(0.0, 0.9 - radius) * 0.5
    left, top = rng.uniform(-room, room, 2)
    outside = distance(scene.shape, (_x - left) / radius, (_y - top) / radius) * radius
    share = 1 / (1 + numpy.exp(numpy.clip(outside * SIDE * 0.9, -30, 30)))[..., None]
    colours = numpy.array(COLOURS[scene.background]), numpy.array(COLOURS[scene.colour])
    mixed = (1 - share) * colours[0] + share * colours[1]
    return mixed.astype(numpy.float32) / 127.5 - 1


def random_scene(rng: Any) -> Scene:
    """Return a scene; half of them say no size."""
    colour, background = rng.choice(list(COLOURS), 2, replace=False)
    size = rng.choice(["small", "large", "", ""])
    return Scene(str(colour), str(background), str(rng.choice(SHAPES)), str(size))


def draw_many(rng: Any) -> tuple[list[Scene], Any]:
    """Return scenes, and their pictures as a tensor [n, 3, 64, 64]."""
    scenes = [random_scene(rng) for _ in range(PICTURES)]
    pictures = numpy.stack([draw(scene, rng) for scene in scenes])
    return scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


# --- the parts ------------------------------------------------------------------------------


def make_tokenizer() -> Any:
    """Return a CLIP tokenizer in which every word of a caption is one token."""
    words = [*_OTHER_WORDS, *COLOURS, *SHAPES, *(size for size in SIZES if size)]
    letters = list(bytes_to_unicode().values())
    trained = Tokenizer(tokenizer_models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(words)] * 50, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model["merges"]
    ]
    pieces = [
        piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece[:2] != "<|"
    ]
    pieces += [letter + "</w>" for letter in letters]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)


def make_text_encoder(tokenizer: Any) -> Any:
    """Return a CLIP text encoder of 0.1 million weights."""
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
            projection_dim=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_vae() -> Any:
    """Return an autoencoder of 0.2 million weights: 64 x 64 pixels become 16 x 16 cells."""
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def make_unet() -> Any:
    """Return a denoiser of 1.7 million weights."""
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )


# --- training -------------------------------------------------------------------------------


def train(
    name: str,
    parameters: Iterable[Any],
    seconds: float,
    rate: float,
    batch: int,
    loss_of: Callable[[Any], Any],
) -> None:
    """Take steps for that many CPU seconds; the learning rate falls as a cosine.

    ``loss_of`` takes the numbers of some pictures.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, fused=True)
    began, steps, mean = time.process_time(), 0, 0.0
    while (share := (time.process_time() - began) / seconds) < 1:
        falling = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (steps + 1) / 40) * falling
        loss = loss_of(torch.randint(0, PICTURES, (batch,)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean = loss.item() if not steps else 0.97 * mean + 0.03 * loss.item()
        steps += 1
        if steps % 100 == 0:
            print(f"{name}: {steps} steps, {share:.0%}, loss {mean:.4f}", flush=True)
    print(f"{name}: {steps} steps, loss {mean:.4f}")


def train_vae(vae: Any, pictures: Any, effort: float) -> None:
    """Train the autoencoder, then its decoder alone on latents with noise."""

    def whole(numbers: Any) -> Any:
        x = pictures[numbers]
        found = vae.encode(x).latent_dist
        y = vae.decode(found.sample()).sample
        likeness = 0.3 * functional.l1_loss(y, x) + functional.mse_loss(y, x)
        return likeness + 1e-6 * found.kl().mean()

    def decoder(numbers: Any) -> Any:
        x = pictures[numbers]
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean
            z = z + torch.randn_like(z) * z.std() * torch.rand(len(z), 1, 1, 1) * 0.25
        y = vae.decode(z).sample
        return 0.5 * functional.l1_loss(y, x) + functional.mse_loss(y, x)

    train("vae", vae.parameters(), VAE_SECONDS * effort, 6e-3, 16, whole)
    of_decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    train("decoder", of_decoder, DECODER_SECONDS * effort, 3e-3, 16, decoder)
    vae.requires_grad_(False).eval()


def latents_of(vae: Any, pictures: Any) -> Any:
    """Return the latents of all pictures, as they are before scaling."""
    with torch.no_grad():
        parts = [vae.encode(part).latent_dist.mean for part in pictures.split(128)]
    return torch.cat(parts)


def train_unet(pipe: Any, noise: Any, scenes: list[Scene], latents: Any, **how: float) -> None:
    """Train denoiser and text encoder to predict the velocity of latents under noise."""

    def ids_of(texts: list[str]) -> Any:
        padded = pipe.tokenizer(
            texts, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
        )
        return padded["input_ids"]

    captions, nothing = ids_of([str(scene) for scene in scenes]), ids_of([""])

    def loss(numbers: Any) -> Any:
        z, ids = latents[numbers], captions[numbers].clone()
        ids[torch.rand(len(ids)) < 0.1] = nothing  # for guidance: what nothing looks like
        error = torch.randn_like(z)
        times = torch.randint(0, 1000, (len(z),))
        states = pipe.text_encoder(ids)[0]
        guess = pipe.unet(noise.add_noise(z, error, times), times, states).sample
        return functional.mse_loss(guess, noise.get_velocity(z, error, times))

    parts = (pipe.text_encoder, pipe.unet)
    for part in parts:
        part.train()
    parameters = [each for part in parts for each in part.parameters()]
    train("unet", parameters, how["seconds"], how["rate"], 32, loss)
    for part in parts:
        part.eval()


def nearest(region: Any) -> str:
    """Return the colour that a region is nearest to."""
    mean = region.reshape(-1, 3).mean(0) * 255
    return min(COLOURS, key=lambda name: float(((mean - COLOURS[name]) ** 2).sum()))


def count_right(pipe: Any) -> int:
    """Return how many of :data:`CHECKED` captions come out in their colours."""
    rng = numpy.random.default_rng(7)
    right = 0
    for number in range(CHECKED):
        scene = random_scene(rng)._replace(size="large", shape=str(rng.choice(SHAPES[:2])))
        picture = pipe(
            str(scene),
            num_inference_steps=20,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(number),
            output_type="np",
        ).images[0]
        middle = picture[28:36, 28:36]
        right += (nearest(middle), nearest(picture[:5])) == (scene.colour, scene.background)
    return right


def main() -> None:
    """Train, check and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--effort", type=float, default=1.0, help="share of the full training")
    asked = parser.parse_args()
    torch.manual_seed(0)
    rng = numpy.random.default_rng(0)
    scenes, pictures = draw_many(rng)
    tokenizer, vae = make_tokenizer(), make_vae()
    train_vae(vae, pictures, asked.effort)
    latents = latents_of(vae, pictures)
    scale = float(1 / latents.std())
    vae.register_to_config(scaling_factor=scale)
    noise = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=make_unet(),
        # "leading" leaves out the very first timesteps, where this schedule is all noise: solvers
        # of second order blow up there
        scheduler=diffusers.DPMSolverMultistepScheduler.from_config(
            noise.config,
            algorithm_type="dpmsolver++",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for seconds, rate in zip(UNET_SECONDS, (1.5e-3, 8e-4), strict=True):
        how = {"seconds": seconds * asked.effort, "rate": rate}
        train_unet(pipe, noise, scenes, latents * scale, **how)
        scenes, pictures = draw_many(rng)
        latents = latents_of(vae, pictures)
    right = count_right(pipe)
    print(f"{right} of {CHECKED} captions came out in their colours")
    if asked.effort >= 1 and right < RIGHT:
        raise SystemExit(f"fewer than {RIGHT}: not saved")
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
