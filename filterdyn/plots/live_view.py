"""`live`: a page on this machine that shows a stream while it runs."""

import itertools
import json
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from filterdyn._checks import check_count
from filterdyn.plots.drawing import reach
from filterdyn.plots.live_page import PAGE
from filterdyn.plots.live_rows import LiveRow

_OWNER = "plots.live"


def live(
    *,
    names: Sequence[str] | None = None,
    observation_names: Sequence[str] | None = None,
    title: str = "filterdyn",
    rows: int = 500,
    probability: float = 0.9,
    port: int = 0,
) -> "LiveView":
    """A page that shows a stream while it runs: states and parameters with their bands, standardised
    innovations, and what a `WatchedFilter` says.

        with fd.plots.live(names=["position", "velocity"]) as view:
            print(view.url)
            for t, y in measurements:
                state, step = online.step(state, t, y)
                view.update(t, step, y)

    The page is served on the loopback interface of this machine only, by a thread of this process, and
    loads nothing from elsewhere. `update` does no more than keep the row; numbers are taken from it when
    a browser asks for them, every half second, so that nothing is computed where nobody looks. The newest
    `rows` are kept.

    **Arguments:**

    - `names`: of the states; `observation_names`: of the measurements;
    - `title`: of the page;
    - `rows`: how many of the newest are kept and shown;
    - `probability`: of the bands;
    - `port`: 0 for one that is free.

    **Returns** a `LiveView`.

    **Raises:** `ValueError` for arguments that make no sense, `OSError` if the port is taken.
    """
    reach(_OWNER, probability)
    check_count(_OWNER, "rows", rows)
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise ValueError(f"{_OWNER}: `port` is {port!r}; expected 0 to 65535")
    return LiveView(
        names=None if names is None else [str(name) for name in names],
        observation_names=None
        if observation_names is None
        else [str(name) for name in observation_names],
        title=str(title),
        rows=rows,
        probability=float(probability),
        port=port,
    )


class LiveView:
    """What `live` has opened: `update` with every step, and `close` at the end, or use it in a `with`
    statement.

    - `url`: where the page is.
    """

    def __init__(
        self,
        *,
        names: list[str] | None,
        observation_names: list[str] | None,
        title: str,
        rows: int,
        probability: float,
        port: int,
    ):
        self._facts = dict(
            id=secrets.token_hex(8),
            title=title,
            names=names,
            observation_names=observation_names,
            rows=rows,
            probability=probability,
        )
        self._rows: deque[LiveRow] = deque(maxlen=rows)
        self._probability = probability
        self._numbers = itertools.count(1)
        #: Whoever takes numbers from rows holds it; `update` does not need it.
        self._reading = threading.Lock()
        self._server = _Server(("127.0.0.1", port), self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs=dict(poll_interval=0.1),
            name="filterdyn live view",
            daemon=True,
        )
        self._thread.start()
        self._open = True

    def update(self, t: Any, step: Any, y: Any = None) -> None:
        """Show a row.

        **Arguments:** `t`: its time, a number, a `datetime` or a `numpy.datetime64`; `step`: the
        `StepResult` of `OnlineFilter.step`; `y` (dy,): what was measured, shown over states of the same
        name if it is given.

        **Raises:** `ValueError` after `close`.
        """
        if not self._open:
            raise ValueError(f"{_OWNER}: this view is closed")
        self._rows.append(LiveRow(next(self._numbers), t, step, y))

    def rows_after(self, number: int) -> dict[str, Any]:
        """What the page asks for: the rows that are kept after the one of this number, ready for JSON."""
        with self._reading:
            # (`update` may append while this looks.)
            kept = [row for row in _copied(self._rows) if row.number > number]
            LiveRow.read(kept, self._probability)
            return dict(self._facts, found=[row.found for row in kept])

    def close(self) -> None:
        """Take the page down. Closing again does nothing."""
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LiveView({self.url if self._open else 'closed'})"


def _copied(rows: deque[LiveRow]) -> list[LiveRow]:
    """A copy of what another thread appends to."""
    while True:
        try:
            return list(rows)
        except RuntimeError:  # it was appended to meanwhile
            continue


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, address: tuple[str, int], view: LiveView):
        self.view = view
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """Two answers: the page, and the rows that are new to it."""

    server: _Server
    server_version = "filterdyn"
    sys_version = ""
    #: Seconds that a client may keep a thread waiting.
    timeout = 10

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        # A page from elsewhere whose name is made to point here would be allowed to read the answer.
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self._answer(403, "text/plain", b"asked for under another name")
            return
        asked = urlsplit(self.path)
        if asked.path == "/":
            self._answer(200, "text/html; charset=utf-8", PAGE.encode())
        elif asked.path == "/rows":
            after = parse_qs(asked.query).get("after", ["0"])[0]
            if not after.isdecimal() or len(after) > 18:
                self._answer(400, "text/plain", b"after: expected a number")
                return
            found = json.dumps(self.server.view.rows_after(int(after)), allow_nan=False)
            self._answer(200, "application/json", found.encode())
        else:
            self._answer(404, "text/plain", b"nothing here")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            (
                "Content-Security-Policy",
                "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                "connect-src 'self'; frame-ancestors 'none'",
            ),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the standard error is the stream's."""
