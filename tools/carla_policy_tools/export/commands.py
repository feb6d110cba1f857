"""The frameworks' own options. Each function makes a source; what follows is the same for all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carla_policy_tools.export.command import app, command
from carla_policy_tools.export.errors import ExportError

if TYPE_CHECKING:
    from carla_policy_tools.export.source import Source

Preprocessor = Annotated[
    Path | None, typer.Option(help="Fitted scikit-learn transformer (.pkl) whose features the policy was trained on.")
]


@command("sb3")
def sb3(
    model: Annotated[Path, typer.Argument(help="What model.save(...) wrote.")],
    vecnormalize: Annotated[
        Path | None, typer.Option(help="What VecNormalize.save(...) wrote, if training normalised observations.")
    ] = None,
    no_vecnormalize: Annotated[
        bool, typer.Option("--no-vecnormalize", help="Insist that observations were not normalised.")
    ] = False,
    preprocessor: Preprocessor = None,
    algorithm: Annotated[
        str | None, typer.Option(help="Such as ppo or sac; recognised by the checkpoint by default.")
    ] = None,
) -> Source:
    """stable-baselines3 and sb3-contrib: PPO, A2C, SAC, TD3, DDPG, DQN, RecurrentPPO, TRPO, TQC, QR-DQN.

    Example: `carla-policy export sb3 sac.zip --vecnormalize vecnormalize.pkl --env highway_env:racetrack-v1`
    """
    from carla_policy_tools.export.stable_baselines3 import load_sb3

    if vecnormalize and no_vecnormalize:
        raise ExportError("--vecnormalize and --no-vecnormalize contradict each other")
    return load_sb3(
        model,
        vecnormalize=vecnormalize,
        preprocessor=_fitted(preprocessor),
        algorithm=algorithm,
        without_normalization=no_vecnormalize,
    )


@command("cleanrl")
def cleanrl(
    weights: Annotated[Path, typer.Argument(help="The agent's state_dict, as torch.save wrote it.")],
    agent: Annotated[
        str | None, typer.Option(help="The agent's class in your script, `ppo_continuous_action.py:Agent`.")
    ] = None,
    normalizer: Annotated[
        Path | None, typer.Option(help=".npz with mean and var of NormalizeObservation (epsilon, clip).")
    ] = None,
    no_normalizer: Annotated[
        bool, typer.Option("--no-normalizer", help="Insist that observations were not normalised.")
    ] = False,
    env: Any = None,
    overlay: Any = None,
) -> Source:
    """CleanRL: ppo_continuous_action, ppo, sac_continuous_action and dqn, recognised by their state_dict.

    Example: `carla-policy export cleanrl ppo.cleanrl_model --normalizer normalizer.npz --env Pendulum-v1`
    """
    from carla_policy_tools.export.cleanrl import load_cleanrl

    return load_cleanrl(
        weights, agent=agent, normalizer=normalizer, without_normalizer=no_normalizer, env=env, card=overlay
    )


@command("rllib")
def rllib(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of an Algorithm's checkpoint, or of an RLModule's.")],
    default_connectors: Annotated[
        bool,
        typer.Option(
            "--default-connectors", help="Of a lone RLModule: insist that there were no connectors but RLlib's."
        ),
    ] = False,
    squashed: Annotated[
        bool, typer.Option("--squashed", help="Of SAC: keep its distribution, whose mode is not RLlib's own choice.")
    ] = False,
) -> Source:
    """RLlib's new API stack: PPO, SAC and DQN.

    Example: `carla-policy export rllib checkpoint_000010 --env highway_env:racetrack-v1`
    """
    from carla_policy_tools.export.rllib import load_rllib

    return load_rllib(checkpoint, default_connectors=default_connectors, squashed=squashed)


@command("torch")
def torch(
    target: Annotated[str, typer.Argument(help="What makes the module: `package.module:factory`, `file.py:factory`.")],
    weights: Annotated[Path | None, typer.Option(help="state_dict to load into it.")] = None,
    arguments: Annotated[str, typer.Option(help="Arguments of the factory, as a JSON object.")] = "{}",
    preprocessor: Preprocessor = None,
    overlay: Any = None,
) -> Source:
    """Any torch.nn.Module; its head, action and observation stand in a --card.

    Example: `carla-policy export torch my_team.nets:make_actor --weights actor.pth --card card.yaml --observations
    observations.npz`
    """
    from carla_policy_tools.export.modules import load_module

    transformer = _fitted(preprocessor)
    return load_module(target, weights=weights, arguments=arguments, card=overlay, preprocessor=transformer)


def _file(
    model: Annotated[Path, typer.Argument(help="The network's file.")],
    preprocessor: Preprocessor = None,
    overlay: Any = None,
) -> Source:
    """A network that is a file already; its head, action and observation stand in a --card.

    Example: `carla-policy export onnx actor.onnx --card card.yaml --observations observations.npz`
    """
    from carla_policy_tools.export.modules import load_file

    return load_file(model, card=overlay, preprocessor=_fitted(preprocessor))


def _fitted(path: Path | None) -> Any:
    from carla_policy.safe_pickle import load_preprocessor_pickle

    return load_preprocessor_pickle(path) if path else None


for _name in ("onnx", "torchscript", "pt2"):
    command(_name)(_file)

__all__ = ["app"]
