"""One contestant in a process of its own, as its user would run it; `Worker` is the parent's side.

    python -c 'from worker import main; main()' MODULE FUNCTION PROBLEM KIND

(in this folder) builds the problem, and then answers lines of JSON on standard input: `{"first": true}`
runs for the first time (trace, compile, run) and tells the time, the memory and the log-likelihood;
`{"repeats": n}` times n further calls.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from harness import Cost, forget_peak, measured, memory

HERE = Path(__file__).resolve().parent
PROGRAM = "from worker import main; main()"


class Worker:
    """Starts the process; the environment is the caller's, without flags for XLA."""

    def __init__(self, module: str, function: str, problem: tuple, kind: str):
        env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        env["JAX_ENABLE_X64"] = "1"
        command = [sys.executable, "-c", PROGRAM, module, function, json.dumps(problem), kind]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=HERE,
        )

    def ask(self, **request) -> dict:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(self.process.stderr.read().strip()[-2000:])
        return json.loads(answer)

    def first(self) -> dict:
        return self.ask(first=True)

    def timer(self, repeats: int) -> Cost:
        return Cost(**self.ask(repeats=repeats))

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    # Whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, function, problem, kind = sys.argv[1:]
    from importlib import import_module

    import numpy as np
    import problems

    offered = import_module(f"contestants.{module}")
    make, *sizes = json.loads(problem)
    call = getattr(getattr(offered, function)(getattr(problems, make)(*sizes)), kind)
    for line in sys.stdin:
        request = json.loads(line)
        if "first" in request:
            forget_peak()
            before, found = memory("VmRSS"), []
            cost = measured(lambda found=found: found.append(call()))
            value = found[0] if kind == "value" else found[0][0]
            answer = {
                **cost._asdict(),
                "megabytes": memory("VmHWM") - before,
                "log_likelihood": float(np.sum(np.asarray(value))),
            }
        else:
            answer = measured(call, request["repeats"])._asdict()
        print(json.dumps(answer), file=answers, flush=True)
