"""Pictures of a drive: a filmstrip and a short video of an episode, filmed after the drive so as not to disturb it.

The episode is driven again, with the controls on record, in an environment that renders. What is observed has to be
what was observed then, bit by bit: an environment that does not follow its seed is filmed as far as it does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from carla_policy.card import ModelCard
from carla_policy_tools.driving.records import Drive, Episode, spread_by_return
from carla_policy_tools.driving.simulation import Simulation, simulation_of

FRAMES, VIDEO_FRAMES = 6, 150
VIDEO_WIDTH, FRAME_WIDTH = 320, 240
MAX_EMBEDDED_BYTES = 4 << 20
"""Of a video in the report; a larger one lies beside it."""
_NAMES = ("filmstrip-*.png", "video-*.gif", "video-*.mp4")
_COLORS, _MARK = 64, "carla-policy-episode"


@dataclass(frozen=True)
class Film:
    """Pictures `[height, width, 3]` of an episode, before the steps of these numbers.

    `complete` is whether the environment followed the record to its end. `seconds` is how long the episode was in the
    simulation, `None` if nobody knows. `mark` is `mark_of` the episode.
    """

    episode: int
    seed: int
    pictures: tuple[Image.Image, ...]
    steps: tuple[int, ...]
    complete: bool
    seconds: float | None
    mark: str


@contextmanager
def rendering_simulation(card: ModelCard, environment: str, arguments: str = "{}") -> Iterator[Simulation]:
    """The environment of a drive once more, with `render_mode` `rgb_array`; no window opens.

    Raises `ExportError` where it takes no `render_mode`, and `ValueError` where it does not render with it.
    """
    with _offscreen():
        keywords = {**json.loads(arguments), "render_mode": "rgb_array"}
        with simulation_of(card, environment, json.dumps(keywords)) as simulation:
            if getattr(simulation.env, "render_mode", None) != "rgb_array":
                raise ValueError(f"--env {environment}: has no render_mode rgb_array, so there is nothing to film")
            yield simulation


@contextmanager
def _offscreen() -> Iterator[None]:
    """SDL draws without a window. Its driver `dummy` would do, but there highway-env paints all of it black."""
    before = os.environ.get("SDL_VIDEODRIVER")
    os.environ["SDL_VIDEODRIVER"] = "offscreen"
    try:
        yield
    finally:
        os.environ.pop("SDL_VIDEODRIVER")
        if before is not None:
            os.environ["SDL_VIDEODRIVER"] = before


def film(simulation: Simulation, episode: Episode, most: int = VIDEO_FRAMES) -> Film:
    """Drive `episode` again, with at most so many pictures, evenly over its steps."""
    wanted = set(np.linspace(0, max(len(episode.steps) - 1, 0), most).round().astype(int).tolist())
    pictures: list[Image.Image] = []
    taken: list[int] = []
    row, complete = simulation.reset(episode.seed), True
    for number, step in enumerate(episode.steps):
        if not np.array_equal(row, step.row):
            complete = False
            break
        picture = simulation.picture() if number in wanted else None
        if picture is not None:
            pictures.append(_scaled(picture))
            taken.append(number)
        row = simulation.step(step.answer.controls).row
    seconds = len(episode.steps) * simulation.step_s if simulation.step_s else None
    return Film(episode.number, episode.seed, tuple(pictures), tuple(taken), complete, seconds, mark_of(episode))


def mark_of(episode: Episode) -> str:
    """Stands in its pictures, so that those of another drive are not taken for its own."""
    return hashlib.sha256(episode.controls.tobytes() + str(episode.seed).encode()).hexdigest()[:16]


def mark_in(path: Path) -> str:
    """That of a filmstrip or a video; `""` where there is none."""
    with Image.open(path) as image:
        mark = image.info.get(_MARK, image.info.get("comment", ""))
    return mark.decode(errors="replace") if isinstance(mark, bytes) else str(mark)


def film_drive(card: ModelCard, drive: Drive, most: int = 2) -> list[Film]:
    """So many of its episodes, evenly from the worst to the best return; raises as `rendering_simulation` does."""
    settings = drive.settings
    arguments = json.dumps(dict(settings.environment_arguments))
    with rendering_simulation(card, settings.environment, arguments) as simulation:
        return [film(simulation, episode) for episode in spread_by_return(drive.episodes, most)]


def write_films(films: Sequence[Film], directory: Path, *, filmstrip: bool = True, video: bool = True) -> list[Path]:
    """`filmstrip-<episode>.png` and `video-<episode>.gif`, and `.mp4` where imageio-ffmpeg is installed.

    Those of an earlier drive in `directory` are removed.
    """
    for path in found_films(directory):
        path.unlink()
    written = []
    for one in films:
        if not one.pictures:
            continue
        if filmstrip:
            written.append(directory / f"filmstrip-{one.episode}.png")
            told = PngInfo()
            told.add_text(_MARK, one.mark)
            strip_of(one).quantize(_COLORS * 2).save(written[-1], optimize=True, pnginfo=told)
        if video:
            written.append(directory / f"video-{one.episode}.gif")
            _write_gif(one, written[-1])
            if importlib.util.find_spec("imageio_ffmpeg"):
                written.append(directory / f"video-{one.episode}.mp4")
                _write_mp4(one, written[-1])
    return written


def found_films(directory: Path) -> list[Path]:
    """What `write_films` left there, by episode."""
    found = [path for name in _NAMES for path in directory.glob(name)]
    return sorted(found, key=_episode_and_kind)


def _episode_and_kind(path: Path) -> tuple[int, str, str]:
    kind, _, number = path.stem.partition("-")
    return int(number) if number.isdecimal() else 0, kind, path.suffix


def strip_of(film: Film, frames: int = FRAMES) -> Image.Image:
    """So many pictures side by side, evenly over the episode, each with the number of its step."""
    chosen = np.linspace(0, len(film.pictures) - 1, min(frames, len(film.pictures))).round().astype(int)
    height = max(1, round(film.pictures[0].height * FRAME_WIDTH / film.pictures[0].width))
    label, gap = 24, 4
    strip = Image.new("RGB", (len(chosen) * (FRAME_WIDTH + gap) - gap, height + label), "white")
    pen = ImageDraw.Draw(strip)
    for place, index in enumerate(chosen):
        left = place * (FRAME_WIDTH + gap)
        strip.paste(film.pictures[index].resize((FRAME_WIDTH, height)), (left, label))
        pen.text((left, 2), f"step {film.steps[index]}", fill="#222222", font_size=17)
    return strip


def _scaled(picture: Any) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture, np.uint8)).convert("RGB")
    height = max(1, round(image.height * VIDEO_WIDTH / image.width))
    # Even numbers of pixels are what video encoders take.
    return image.resize((VIDEO_WIDTH, height + height % 2), Image.Resampling.LANCZOS)


def _milliseconds(film: Film) -> int:
    """A frame's time: the episode takes 15 s at most, and is never slower than it was."""
    real = 1e3 * (film.seconds or 0.1 * len(film.pictures)) / max(len(film.pictures), 1)
    return max(20, round(min(real, 15_000 / max(len(film.pictures), 1))))


def _write_gif(film: Film, path: Path) -> None:
    palette = film.pictures[0].quantize(_COLORS)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in film.pictures]
    duration, told = _milliseconds(film), film.mark.encode()
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=duration, loop=0, optimize=True, comment=told
    )


def _write_mp4(film: Film, path: Path) -> None:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(str(path), film.pictures[0].size, fps=1e3 / _milliseconds(film))
    writer.send(None)
    for picture in film.pictures:
        writer.send(picture.tobytes())
    writer.close()
