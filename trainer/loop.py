"""The training loop. It knows a method (`step`, `state_dict`, `load_state_dict`) and callbacks, none by name."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)


class Loop:
    """Runs `method.step(step)` from the newest checkpoint to `total`, saving on the way."""

    def __init__(self, method, total: int, checkpoint, callbacks=()):
        self.method, self.total, self.checkpoint, self.callbacks = method, total, checkpoint, list(callbacks)
        self.seconds = 0.0  # spent in training, over all resumes

    def resume(self) -> int:
        """Loads the newest complete checkpoint; returns the step to go on with.

        Errors: ValueError for a checkpoint of another configuration.
        """
        state = self.checkpoint.load()
        if state is None:
            return 0
        try:
            self.method.load_state_dict(state["method"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"the checkpoint of step {state['step']} is of another configuration ({str(error).splitlines()[0]}); "
                "give its own recipe, another --logdir, or --no-auto-resume"
            ) from error
        self.seconds = state["seconds"]
        logger.info("resumed at step %d", state["step"])
        return state["step"]

    def fit(self, resume: bool = True) -> None:
        """Trains to the end. Callbacks see tensors; who reads them waits for the device."""
        if not resume:
            self.checkpoint.set_aside()
        start = self.resume()
        for callback in self.callbacks:
            callback.start(start, self.total)
        before, begin = self.seconds, time.monotonic()
        for step in range(start, self.total):
            metrics = self.method.step(step)
            self.seconds = before + time.monotonic() - begin
            for callback in self.callbacks:
                callback.after_step(step, metrics, self.seconds)
            done = step + 1
            if done % self.checkpoint.config.every == 0 or done == self.total:
                for callback in self.callbacks:
                    callback.before_save()
                self.checkpoint.save({"method": self.method.state_dict(), "seconds": self.seconds}, done)
        for callback in self.callbacks:
            callback.finish(self.method, self.seconds)
