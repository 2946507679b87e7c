"""The training loop: a method's steps, callbacks around them, checkpoints; it knows none of them by name."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from trainer.callbacks import NotFinite, check_numbers, check_weights, watch
from trainer.checkpoint.folder import Checkpoint
from trainer.interrupt import Interrupt
from trainer.protocol import Callback, Method

logger = logging.getLogger(__name__)


class Loop:
    """Runs `method.step(step)` from the newest checkpoint to `total`, saving on the way."""

    def __init__(self, method: Method, total: int, checkpoint: Checkpoint, callbacks: Sequence[Callback] = ()):
        self.method, self.total, self.checkpoint, self.callbacks = method, total, checkpoint, list(callbacks)
        self.seconds = 0.0  # spent in training, over all resumes

    def resume(self) -> int:
        """Loads the newest complete checkpoint; returns the step to go on with.

        Errors: ValueError for a checkpoint of another configuration, with the values that differ.
        """
        found = self.checkpoint.find()
        if found is None:
            return 0
        changes = found.changes(self.checkpoint.recipe)
        try:
            state = found.read(self._state())
            self.method.load_state_dict(state["method"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"the checkpoint of step {found.step} does not match this configuration "
                f"({str(error).splitlines()[0]}). "
                f"Changed since (saved -> now): {', '.join(changes[:10]) or 'nothing that the recipe says'}; "
                "give its own recipe, another --logdir, or --no-auto-resume"
            ) from error
        if changes:
            logger.warning("the run goes on with other values (saved -> now): %s", ", ".join(changes))
        if replaced := self.checkpoint.changed_inputs(found):
            logger.warning(
                "what the run reads was replaced since the checkpoint of step %d: %s; it goes on with what is there",
                *(found.step, ", ".join(replaced)),
            )
        self.seconds = state["seconds"]
        logger.info("resumed at step %d", found.step)
        if found.step > self.total:
            logger.warning("steps is %d and the checkpoint is of step %d: nothing is trained", self.total, found.step)
        return found.step

    def fit(self, resume: bool = True) -> None:
        """Trains to the end, or to a signal: then it saves, asks to be started again, and returns.

        Callbacks receive tensors; reading one synchronises with the device.
        Errors: ValueError for a loss that is not finite, on all ranks, and for a folder in which another training
        runs; OSError if a checkpoint cannot be written.
        """
        with self.checkpoint.claimed():
            self._fit(resume)

    def _fit(self, resume: bool) -> None:
        if not resume:
            self.checkpoint.set_aside()
        start = self.resume()
        for callback in self.callbacks:
            callback.start(start, self.total)
        with Interrupt(self.checkpoint.run) as interrupt:
            interrupt.clear()
            try:
                done = self._train(start, interrupt)
            except NotFinite as error:
                raise ValueError(f"{error}; {self._last_good()}") from error
            self.checkpoint.wait()
            if done < self.total:
                self._stop(done, interrupt)
                return
        for callback in self.callbacks:
            callback.finish(self.method, self.seconds)

    def _stop(self, done: int, interrupt: Interrupt) -> None:
        """Ends a run that a signal stopped; where nothing is saved there is nothing to go on with."""
        for callback in self.callbacks:
            callback.stop()
        then = "nothing was saved (--no_save)"
        if self.checkpoint.writes:
            interrupt.ask_for_requeue()
            then = "run again to go on"
        logger.warning("stopped by a signal after %d of %d steps; %s", done, self.total, then)

    def _train(self, start: int, interrupt: Interrupt) -> int:
        """Runs and saves until the last step or a signal; returns the number of steps done."""
        before, begin = self.seconds, time.monotonic()
        for step in range(start, self.total):
            metrics = self.method.step(step)
            self.seconds = before + time.monotonic() - begin
            for callback in self.callbacks:
                callback.after_step(step, metrics, self.seconds)
            done, stop = step + 1, interrupt.due()
            if stop or done % self.checkpoint.config.every == 0 or done == self.total:
                for callback in self.callbacks:
                    callback.before_save()
                state = self._state()
                check_weights(state, done)
                self.checkpoint.save(state, done)
            if stop:
                return done
        return self.total

    def try_step(self) -> float:
        """Takes the first step and writes nothing; returns its loss. Errors: ValueError as `fit` would raise."""
        metrics = self.method.step(0)
        (loss,) = check_numbers([watch(0, metrics, self.method)], [metrics["loss"]])
        check_weights(self._state(), 1)
        return loss

    def _state(self) -> dict:
        return {"method": self.method.state_dict(), "seconds": self.seconds}

    def _last_good(self) -> str:
        """Returns where to go on from; a save that was under way is waited for."""
        self.checkpoint.wait()
        good = self.checkpoint.good
        return f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
