"""What `filterdyn stream` does."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator

import jax

from filterdyn.streams.event import Event
from filterdyn.streams.json_lines import JSONLines
from filterdyn.streams.json_output import JSONOutput, as_json
from filterdyn.streams.named import online_filter
from filterdyn.streams.runner import LocalRunner


def stream(chosen: argparse.Namespace) -> int:
    """Filter the input to its end, or until a signal; the exit status."""
    jax.config.update("jax_enable_x64", not chosen.float32)
    # A step is shorter than what it costs to hand it to another thread.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    runner = LocalRunner(
        online_filter("--model", chosen.model, chosen.filter),
        chosen.checkpoint,
        chosen.late,
        t0=chosen.t0,
        u0=chosen.u0,
        key=jax.random.key(chosen.seed),
        every=chosen.every,
        seconds=chosen.seconds,
        generations=chosen.generations,
    )
    with contextlib.closing(runner):
        before = runner.count
        if before and not chosen.quiet:
            _say(f"going on after {before} events, from {runner.path}")
        output = JSONOutput(chosen.output, runner.output, runner.folder / "output")
        with contextlib.closing(output), _signals() as signals:
            passage = _Passage(runner, output, chosen)
            try:
                passage.run(signals)
            except (ValueError, TypeError):
                passage.snapshot()  # of what came before
                raise
            passage.snapshot()
    if not chosen.quiet:
        passage.tell(before)
    return 0


class _Passage:
    """Events on their way from the input to the output."""

    def __init__(self, runner: LocalRunner, output: JSONOutput, chosen: argparse.Namespace):
        self.runner = runner
        self.output = output
        self.skips = chosen.skip_malformed
        self.passed_over = 0
        self.failed = False
        self.source = JSONLines(
            chosen.input,
            follow=chosen.follow,
            observation_names=chosen.names,
            input_names=chosen.input_names,
            on_malformed=self._pass_over if self.skips else None,
        )

    def run(self, signals: list[int]) -> None:
        for event in self.source(self.runner.position):
            if event is None:
                self.output.flush()
            else:
                self._take(event)
            if self.runner.is_due:
                self.snapshot()
            if signals:
                return

    def _take(self, event: Event) -> None:
        line = event.position["line"]
        try:
            outcome = self.runner.push(event)
        except (ValueError, TypeError) as error:
            refused = ValueError(f"line {line}: {error}")
            if not self.skips:
                raise refused from None
            self._pass_over(refused)
            self.runner.skip(event)
            return
        found = as_json(outcome)
        self.output.write(found)
        if not self.failed and found.get("status", "OK") != "OK":
            self.failed = True
            _say(f"line {line}: the filter has failed ({found['status']}); this is final")

    def _pass_over(self, error: Exception) -> None:
        self.passed_over += 1
        _say(f"passed over: {error}")

    def snapshot(self) -> None:
        self.runner.output = self.output.sync()
        self.runner.snapshot()

    def tell(self, before: int) -> None:
        if self.source.resumed == "other":
            _say("the input began with another line than the snapshot's: it was taken as a new one")
        text = f"{self.runner.count - before} events, {self.passed_over} lines passed over"
        stream = self.runner.stream
        if stream is not None:
            text += (
                f"; in all {self.runner.count} events, not used: {stream.late_count} late, "
                f"{stream.duplicate_count} repeated; snapshot: {self.runner.path}"
            )
        _say(text)


def _say(text: str) -> None:
    print(f"filterdyn stream: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or SIGINT comes."""
    came: list[int] = []
    caught = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(s, lambda number, _: came.append(number)) for s in caught]
    try:
        yield came
    finally:
        for s, handler in zip(caught, before, strict=True):
            signal.signal(s, handler)
