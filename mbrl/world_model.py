"""World models: what they lose, observe, imagine and decode.

``WorldModel`` is what all of them share, ``LatentModel`` Dreamer's, with an encoder, the RSSM and heads, and
``ObservationModel`` one whose state is the observation itself. Letters: B sequences, T steps, N rollouts, H imagined
steps, A action, E embedding, F features, X numbers in an observation. Source: Hafner et al. (Nature, 2025), eqs. 3-5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

from mbrl.autoencoder import Decoder, Encoder, Plain
from mbrl.distributions import SymexpTwoHot, bernoulli_loss
from mbrl.dynamics.ensemble import Ensemble, EnsembleConfig
from mbrl.dynamics.rssm import RSSM, RSSMConfig
from mbrl.errors import UserError, check_least
from mbrl.interfaces import Imagined, State
from mbrl.networks import Head, TwoHotHead
from mbrl.spaces import is_image
from mbrl.steps import Steps


@dataclass(frozen=True)
class WorldModelConfig:
    family: str = "rssm"
    """"rssm"; or "ensemble", of transitions from observation to observation, which are then all that is known."""
    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    """The dynamics of "rssm"."""
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    """Those of "ensemble", to which of what follows only ``normalise`` and ``horizon`` apply."""
    units: int = 64
    """Width of encoder, decoder and heads."""
    layers: int = 3
    """Hidden layers of the vector encoder and decoder."""
    depth: int = 4
    """Channels of the image encoder and decoder are multiples of this."""
    reward_layers: int = 1
    """Hidden layers of the reward head."""
    continue_layers: int = 1
    """Hidden layers of the continue head."""
    bins: int = 255
    """Bins of the reward's two-hot distribution; odd."""
    norm: str = "rms"
    """Normalisation in every network: "rms" (DreamerV3) or "layer" (fused, faster on a CPU)."""
    normalise: bool = False
    """Normalise vectors by running statistics instead of symlog."""
    horizon: float = 333.0
    """Steps that the discount 1 - 1/horizon looks ahead; it is part of the predicted continue."""
    dyn_scale: float = 1.0
    """Weight of the dynamics loss, which trains the prior."""
    rep_scale: float = 0.1
    """Weight of the representation loss, which trains the posterior."""
    rec_scale: float = 1.0
    """Weight of the reconstruction losses."""


def _check(config: WorldModelConfig, images: bool) -> None:
    """Raises:
    UserError: a number that nothing could be done with.
    """
    counts = ("units", "depth")
    layers = ("layers", "reward_layers", "continue_layers")
    check_least(config, "--config.model", {**dict.fromkeys(counts, 1), **dict.fromkeys(layers, 0), "bins": 3})
    if config.bins % 2 == 0:
        raise UserError(f"--config.model.bins is {config.bins}; it must be odd: one bin for 0, as many below as above")
    if images and 4 * config.depth % config.rssm.blocks:
        raise UserError(
            f"--config.model.depth is {config.depth}; for pictures four times as many must divide by "
            f"--config.model.rssm.blocks, {config.rssm.blocks}"
        )


class WorldModel(nn.Module, ABC):
    """What Dreamer agents imagine in; agents and heads see nothing of a state but its features.

    Args:
        config: sizes and loss scales.
        encoder: of observations.
        decoder: Features (..., F) -> predictions by key, vectors as networks see them, images in [0, 1].
    """

    feature_size: int
    """F."""
    gradient_steps = 1
    """How many of its own belong to an update of the agent, each on a batch of its own."""
    batch: tuple[int, int] | None = None
    """(B, T) of each, where the agent's would not do."""
    decoder: Callable[[Tensor], dict[str, Tensor]]
    doubts = False
    """Whether it can tell how little it knows."""

    def __init__(self, config: WorldModelConfig, encoder: Plain):
        super().__init__()
        self.config, self.encoder = config, encoder

    # ---- what a family brings along ------------------------------------------------------------------

    @abstractmethod
    def initial_state(self, n: int) -> State:
        """Of n environments before their first step."""

    @abstractmethod
    def observe(self, step: Steps, state: State) -> State:
        """Filter one step (N,) while acting."""

    @abstractmethod
    def step(self, state: State, action: Tensor) -> State:
        """One imagined step: (N,) states and actions (N, A) -> (N,) states."""

    @abstractmethod
    def features(self, state: State) -> Tensor:
        """(..., F)."""

    @abstractmethod
    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (..., F) -> expected reward (...) and discounted continue probability (...)."""

    @abstractmethod
    def loss(self, steps: Steps, state: State) -> tuple[dict[str, Tensor], State]:
        """Losses of replayed sequences.

        Args:
            steps: (B, T).
            state: (B,) before the first step.

        Returns:
            Losses by name, scaled, one for each step or transition, and the posterior states (B, T).
        """

    @abstractmethod
    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each of ``latents``."""

    @abstractmethod
    def latents(self, state: State) -> State:
        """What the replay keeps of states (...), compact."""

    @abstractmethod
    def recall(self, steps: Steps, latents: State) -> State:
        """The states (...) that replayed steps (...) led to, from what the replay keeps of both."""

    def doubt(self, x: Tensor, action: Tensor) -> Tensor:
        """What is seen (n, X), and an action (n, A) -> how little is known of what follows (n,), at least 0."""
        raise NotImplementedError

    # ---- what all of them do -------------------------------------------------------------------------

    def imagine(self, policy: Callable[[Tensor], Tensor], start: State, horizon: int) -> Imagined:
        """Roll a policy out inside the model.

        Args:
            policy: features (N, F) -> action (N, A).
            start: (N,) states; index 0 of what is returned.
            horizon: H.

        Returns:
            Features, actions, rewards and continues (N, H+1, ...); the action at H is drawn too.
        """
        state, features, actions = start, [self.features(start)], []
        for _ in range(horizon):
            actions.append(policy(features[-1]))
            state = self.step(state, actions[-1])
            features.append(self.features(state))
        actions.append(policy(features[-1]))
        path = torch.stack(features, 1)
        return Imagined(path, torch.stack(actions, 1), *self.predict(path))

    @torch.no_grad()
    def decode(self, state: State) -> dict[str, Tensor]:
        """States (...) -> observations (..., *shape): vectors in the environment's units, images in [0, 1]."""
        predictions = self.decoder(self.features(state))
        view = self.encoder.view
        if view.numeric:
            numeric = view.scaling.inverse(torch.cat([predictions[key] for key in view.numeric], -1))
            predictions |= dict(zip(view.numeric, numeric.split(list(view.numeric.values()), -1), strict=True))
        return predictions

    def expected(self, features: Tensor) -> Tensor:
        """Features (..., F) -> (..., X): the vectors that are expected, in the form in which networks see real ones.

        Discrete observations by the probabilities of their values.
        """
        decoded, view = self.decoder(features), self.encoder.view
        parts = [decoded[key].softmax(-1) if key in view.discrete else decoded[key] for key in view.sizes]
        return torch.cat(parts, -1)

    def predictions(self, features: Tensor) -> list[Tensor]:
        """Features (..., F) -> what ``targets`` gives, as the model sees it: (..., E) each."""
        decoded, view = self.decoder(features), self.encoder.view
        vectors = [torch.cat([decoded[key] for key in view.numeric], -1)] if view.numeric else []
        return [*vectors, *(decoded[key].flatten(-3) for key in self.encoder.images)]

    def targets(self, obs: dict[str, Tensor], lead: int) -> list[Tensor]:
        """All vectors side by side, in the networks' units, then each image in [0, 1]: (..., E) each.

        ``lead`` is the number of leading dims. Discrete observations are left out.
        """
        view = self.encoder.view
        vectors = [view.scaling(view.raw(obs, lead))] if view.numeric else []
        return [*vectors, *(obs[key].float().flatten(-3) / 255 for key in self.encoder.images)]

    @torch.no_grad()
    def errors(self, obs: dict[str, Tensor], states: State) -> Tensor:
        """(B, T): mean absolute error per element of ``targets``, averaged over them."""
        features = self.features(states)
        pairs = zip(self.predictions(features), self.targets(obs, lead=2), strict=True)
        errors = [(dreamt - truth).abs().mean(-1) for dreamt, truth in pairs]
        return torch.stack(errors).mean(0) if errors else torch.zeros_like(features[..., 0])


class LatentModel(WorldModel):
    """DreamerV3's: observations are encoded into the latents of an RSSM, and decoded from them.

    Args:
        config: sizes and loss scales.
        observation_space: flat Dict of Box and Discrete.
        action_size: A.

    Raises:
        UserError: a number of ``config`` that nothing could be done with.
    """

    def __init__(self, config: WorldModelConfig, observation_space: spaces.Dict, action_size: int):
        _check(config, images=any(is_image(space) for space in observation_space.values()))
        encoder = Encoder(config, observation_space)
        super().__init__(config, encoder)
        self.dynamics = RSSM(config.rssm, encoder.outputs, action_size, config.norm)
        sizes = self.dynamics.feature_sizes
        self.decoder = Decoder(config, observation_space, encoder.view, sizes)
        self.feature_size = sum(sizes)
        self.reward = TwoHotHead(self.feature_size, config.bins, config.units, config.reward_layers, config.norm)
        self.proceed = Head(self.feature_size, (1,), config.units, config.continue_layers, norm=config.norm)

    def initial_state(self, n: int) -> State:
        return self.dynamics.initial_state(n)

    def observe(self, step: Steps, state: State) -> State:
        return self.dynamics.filter(state, self.encoder(step.obs, lead=1), step.action, step.is_first)

    def step(self, state: State, action: Tensor) -> State:
        return self.dynamics.step(state, action)

    def features(self, state: State) -> Tensor:
        return self.dynamics.features(state)

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return SymexpTwoHot(self.reward(features)).mean, torch.sigmoid(self.proceed(features)).squeeze(-1)

    def loss(self, steps: Steps, state: State) -> tuple[dict[str, Tensor], State]:
        embed = self.encoder(steps.obs, lead=2)
        states, losses = self.dynamics.observe(embed, steps.action, steps.is_first, state)
        features = self.dynamics.features(states)
        config = self.config
        losses = {"dyn": config.dyn_scale * losses["dyn"], "rep": config.rep_scale * losses["rep"]}
        for key, error in self._reconstruction(steps.obs, self.decoder(features)).items():
            losses[f"rec_{key}"] = config.rec_scale * error
        losses["rew"] = SymexpTwoHot(self.reward(features)).loss(steps.reward)
        target = (~steps.is_terminal).float() * (1 - 1 / config.horizon)
        losses["con"] = bernoulli_loss(self.proceed(features).squeeze(-1), target)
        return losses, states

    def _reconstruction(self, obs: dict[str, Tensor], predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, T) per key: squared error summed over the observation, cross entropy for discrete keys."""
        view, errors = self.encoder.view, {}
        if view.numeric:
            target = view.scaling(view.raw(obs, 2))
            for key, part in zip(view.numeric, target.split(list(view.numeric.values()), -1), strict=True):
                errors[key] = (predictions[key] - part).square().sum(-1)
        for key, (_, start) in view.discrete.items():
            logits = predictions[key].permute(0, 2, 1)
            errors[key] = F.cross_entropy(logits, obs[key].long() - start, reduction="none")
        for key in self.encoder.images:
            errors[key] = (predictions[key] - obs[key].float() / 255).square().sum((-3, -2, -1))
        return errors

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        c = self.config.rssm
        return {"deter": ((c.deter,), torch.float16), "stoch": ((c.stoch,), torch.uint8)}

    def latents(self, state: State) -> State:
        """Half-precision deter and class indices as bytes: a quarter of the floats' size or less."""
        stoch = state["stoch"].detach().argmax(-1).to(torch.uint8)
        return {"deter": state["deter"].detach().to(torch.float16), "stoch": stoch}

    def recall(self, steps: Steps, latents: State) -> State:
        stoch = F.one_hot(latents["stoch"].long(), self.config.rssm.classes).float()
        return {"deter": latents["deter"].float(), "stoch": stoch}


class ObservationModel(WorldModel):
    """One whose state is the observation, for observations that are numbers and hide nothing.

    Beside it a state has the reward that came with it and the probability that the episode goes on.

    Args:
        config: sizes.
        observation_space: flat Dict of Box, without images.
        action_size: A.
    """

    def __init__(self, config: WorldModelConfig, observation_space: spaces.Dict, action_size: int):
        super().__init__(config, Plain(config, observation_space))
        self.gradient_steps, self.batch = config.ensemble.steps, (config.ensemble.batch_size, 2)
        self.doubts = config.ensemble.members > 1
        self.size = self.encoder.view.size
        self.feature_size = self.size + 2
        self.dynamics = Ensemble(config.ensemble, self.size, action_size)

    def initial_state(self, n: int) -> State:
        zero = self.dynamics.reward_size.new_zeros(n)
        return {"x": zero.unsqueeze(-1).expand(n, self.size), "reward": zero, "proceed": zero + 1}

    def observe(self, step: Steps, state: State) -> State:
        return self.recall(step, {})

    def step(self, state: State, action: Tensor) -> State:
        x, reward, proceed = self.dynamics.step(state["x"], action)
        return {"x": x, "reward": reward, "proceed": proceed}

    def features(self, state: State) -> Tensor:
        return torch.cat([state["x"], state["reward"].unsqueeze(-1), state["proceed"].unsqueeze(-1)], -1)

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features[..., -2], features[..., -1] * (1 - 1 / self.config.horizon)

    def decoder(self, features: Tensor) -> dict[str, Tensor]:
        """Features (..., F) -> the observation by key, as networks see it."""
        sizes = self.encoder.view.sizes
        return dict(zip(sizes, features[..., : self.size].split(list(sizes.values()), -1), strict=True))

    def loss(self, steps: Steps, state: State) -> tuple[dict[str, Tensor], State]:
        states, later = self.recall(steps, {}), steps[:, 1:]
        x, next_x, proceed = states["x"][:, :-1], states["x"][:, 1:], states["proceed"][:, 1:]
        parts = (x, later.action.clamp(-1, 1), next_x, later.reward, proceed, (~later.is_first).float())
        return self.dynamics.loss(*(part.flatten(0, 1) for part in parts)), states

    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {}

    def latents(self, state: State) -> State:
        return {}

    def recall(self, steps: Steps, latents: State) -> State:
        x = self.encoder(steps.obs, lead=steps.reward.ndim)
        return {"x": x, "reward": steps.reward, "proceed": (~steps.is_terminal).float()}

    def doubt(self, x: Tensor, action: Tensor) -> Tensor:
        return self.dynamics.doubt(x, action)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Gradients flow through these modules but not into their parameters."""
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)
