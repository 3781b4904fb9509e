"""`ArrowRouter`: routing by the frames' LoRA weights alone."""

from __future__ import annotations

import contextlib

import numpy as np

from .base import Router, check_arrays, needed


class ArrowRouter(Router):
    """Training-free: a frame's prototype in each layer is the input direction its LoRA moves most.

    Arrow (Ostapenko et al. 2024): the top right singular vector of B A; a token's affinity is the
    absolute dot product with it, softmax over the frames. Arrow mixes adapters per token and layer
    inside the model (so does PEFT's implementation, which cannot hand out one frame per text);
    here the affinities are averaged over a text's tokens and layers, and the best frame answers.
    The routing texts are read for the temperature of `predict_proba` only.

    stack: the `SkillStack` whose frames are routed to. delta: use what a frame added to its
    parent's update rather than the whole update, since the frames of a chain inherit most of it.

    >>> ArrowRouter(delta=False).get_params()
    {'delta': False, 'stack': None}
    >>> ArrowRouter().fit(["a dull film"], ["imdb"])
    Traceback (most recent call last):
    skillstack_helpers.errors.SkillStackError: this router reads a model: pass stack=
    """

    def __init__(self, stack=None, delta: bool = True):
        self.stack = stack
        self.delta = delta

    def _fit(self, texts, names):
        self.prototypes_ = {}
        self._add([], [], self.frames_)
        if len(self.frames_) > 1:
            scores = self._scores(texts)
            # Committed calibration errors rest on the temperature of the logarithms of more than
            # two affinities, although `predict_proba` applies it to the affinities themselves.
            self._calibrate(np.log(scores + 1e-12) if len(self.frames_) > 2 else scores, names)

    def _add(self, texts, names, new):
        stack = needed(self.stack, "stack")
        for found in [self._prototypes(stack[name]) for name in new]:  # all of them, or an error
            for module, vector in found.items():
                rows = self.prototypes_.get(module, np.zeros((0, len(vector)), np.float32))
                self.prototypes_[module] = np.vstack([rows, vector])

    def _prototypes(self, frame) -> dict[str, np.ndarray]:
        import torch

        inherit = self.delta and frame.parent is not None
        parent = self.stack[frame.parent].updates() if inherit else {}
        out = {}
        for module, (b, a) in frame.updates().items():
            if parent:  # B A - B' A' = [B, -B'] [A; A']
                b = torch.cat([b, -parent[module][0]], dim=1)
                a = torch.cat([a, parent[module][1]], dim=0)
            _, r = torch.linalg.qr(b)  # B = Q R: B A and R A have the same right singular vectors
            out[module] = torch.linalg.svd(r @ a, full_matrices=False)[2][0].numpy()
        return out

    def _scores(self, texts):
        import torch

        from ..training import eval_batches, pad

        stack = needed(self.stack, "stack")
        backbone, first = stack.backbone, stack[self.frames_[0]]
        backbone.attach(*first.slot)
        ids = backbone.encode(texts, first.training["max_length"])
        out = np.empty((len(texts), len(self.frames_)))
        affinity, mask = [], None

        def hook(prototypes):
            def see(module, inputs):
                seen = inputs[0]
                if seen.shape[:-1] == (mask.numel(),):  # OPT's feed-forward: all tokens in a row
                    seen = seen.unflatten(0, mask.shape)
                if seen.shape[:-1] != mask.shape:  # no tokens: DeBERTa's relative positions
                    return
                likeness = (seen.float() @ prototypes.T).abs().softmax(-1)
                affinity.append((likeness * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))

            return see

        with contextlib.ExitStack() as hooks, torch.inference_mode(), backbone.without_adapter():
            for name, rows in self.prototypes_.items():
                vectors = torch.from_numpy(rows).to(backbone.device)
                module = backbone.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(hook(vectors)).remove)
            for batch in eval_batches([len(row) for row in ids]):
                padded, mask = pad([ids[i] for i in batch], backbone.pad_id, backbone.device)
                affinity.clear()
                backbone.model(input_ids=padded, attention_mask=mask)  # whole, as `mask` is
                out[batch] = torch.stack(affinity).mean(0).cpu().numpy()
        return out

    def _state(self):
        state = super()._state()
        prototypes = state.pop("prototypes_").items()
        return state | {f"prototypes_/{module}": rows for module, rows in prototypes}

    def _restore(self, state):
        found = {key for key in state if key.startswith("prototypes_/")}
        prototypes = {key.removeprefix("prototypes_/"): state.pop(key) for key in found}
        super()._restore(state | {"prototypes_": prototypes})
        check_arrays(prototypes, **dict.fromkeys(prototypes, (len(self.frames_), None)))
