"""Programs that start at once: ``python -S forking.py PROGRAM ARGUMENT...`` has one process, which has imported all,
fork another that runs ``dk-bench``, or W&B's agent in haste, in its place.

What asks for it lives as long as that does, passes signals on to it, and ends as it ended; when it is killed, the other
is, too. So whoever starts processes, W&B's agent or `dk-bench sweep`, may start many.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOCKET = "DK_BENCH_FORKING"  # environment variable: where the process listens
LIST = "list"  # in place of a program: what runs now


def ask(request: dict) -> socket.socket:
    """Returns the connection on which the answer comes."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    socket.send_fds(connection, [b" "], [1, 2])
    connection.sendall(json.dumps(request).encode() + b"\n")
    return connection


def stand_for(argv: list[str]) -> None:
    """Lives and ends as a program that is forked in this one's place."""
    connection = ask({"argv": argv, "cwd": os.getcwd(), "environment": dict(os.environ)})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    answer = b""
    while not answer.endswith(b"\n"):
        part = connection.recv(100)
        if not part:  # the other one is gone
            sys.exit(70)
        answer += part
    status = int(answer)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def running() -> list[dict]:
    """What runs now: pid, argv, and the pid of what asked for it."""
    with ask({"argv": [LIST]}) as connection, connection.makefile() as stream:
        return json.loads(stream.readline())


@contextlib.contextmanager
def forker() -> Iterator[None]:
    """Lets programs be forked until the block is left."""
    with tempfile.TemporaryDirectory() as folder:  # of a short path, as a socket's must be
        os.environ[SOCKET] = str(Path(folder, "socket"))
        path = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            try:
                assert process.stdout.readline() == b"ready\n"
                yield
            finally:
                process.stdin.close()
                process.wait(60)
                del os.environ[SOCKET]


def become(argv: list[str]) -> int:
    """Runs a program and returns its exit status."""
    if argv[0] == "wandb":
        from wandb.cli.cli import cli
        from wandb.wandb_agent import Agent

        Agent.POLL_INTERVAL = 0.1
        sys.argv = argv
        cli(argv[1:], standalone_mode=False)
        return 0
    from dk_bench.cli import main
    from dk_bench.runs import wandb_server
    from dk_bench.sweep import wandb_requeue

    wandb_server.CLAIM_SETTLES_SECONDS, wandb_requeue.ASK_SECONDS = 0.5, 1.0
    sys.argv = argv
    return main(argv[1:])


class Forker:
    """Forks programs for those that ask, and tells them how each has ended."""

    def __init__(self) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(os.environ[SOCKET])
        self.listening.listen(100)
        self.programs: dict[int, tuple[socket.socket, dict]] = {}  # by pid

    def serve(self) -> None:
        """Serves until whoever has started this process closes its input."""
        import select

        while True:
            connections = [connection for connection, _ in self.programs.values()]
            ready, _, _ = select.select([self.listening, sys.stdin, *connections], [], [], 0.02)
            for pid, (connection, _) in [*self.programs.items()]:
                if connection in ready:
                    self.signal(pid, connection)
            self.reap()
            if self.listening in ready:
                self.accept()
            if sys.stdin in ready:
                for pid in self.programs:
                    os.killpg(pid, signal.SIGKILL)
                return

    def accept(self) -> None:
        connection, _ = self.listening.accept()
        _, outputs, _, _ = socket.recv_fds(connection, 1, 2)
        request = json.loads(connection.makefile("rb").readline())
        if request["argv"] == [LIST]:
            told = [{"pid": pid, **program} for pid, (_, program) in self.programs.items()]
            connection.sendall(json.dumps(told).encode() + b"\n")
            connection.close()
        else:
            pid = os.fork()
            if not pid:
                self.child(request, outputs)
            asker = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
            self.programs[pid] = connection, {"argv": request["argv"], "asker": asker}
        for number in outputs:
            os.close(number)

    def child(self, request: dict, outputs: list[int]) -> None:
        import atexit
        import traceback

        from dk_bench.processes.interrupts import begin_anew

        code = 1
        try:
            os.setsid()
            outputs.insert(0, os.open(os.devnull, os.O_RDONLY))
            for number, output in enumerate(outputs):
                os.dup2(output, number)
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environment"])
            begin_anew()
            code = become(request["argv"])
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)

    def signal(self, pid: int, connection: socket.socket) -> None:
        """Passes on what arrives; nothing: its client was killed."""
        with contextlib.suppress(OSError):
            numbers = connection.recv(10)
            for number in numbers or [signal.SIGKILL]:
                os.kill(pid, number)

    def reap(self) -> None:
        for pid, (connection, _) in [*self.programs.items()]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.programs[pid]
                with contextlib.suppress(OSError):  # its client was killed
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                connection.close()


def serve() -> None:
    """Imports what programs need, by training once, and serves."""
    import gc

    for name in ("pytorch_lightning.loggers", "requests", "wandb.cli.cli", "wandb.sdk.launch.sweeps.utils"):
        importlib.import_module(name)
    import wandb.wandb_agent
    from training_cases import tiny

    from dk_bench.training import train

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            train(tiny(folder, "optim.epochs=1", "optim.warmup_epochs=0"))
    wandb.util.working_set = lambda: ()  # all packages' metadata, which every run reads for half its time
    gc.freeze()  # else each fork's first collection copies all of it
    forker = Forker()
    print("ready", flush=True)
    forker.serve()


if __name__ == "__main__":
    stand_for(sys.argv[1:]) if len(sys.argv) > 1 else serve()
