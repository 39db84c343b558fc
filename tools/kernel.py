"""The process that a chapter runs in: this interpreter, for as long as its run and no longer.

A kernel, and what its cells start, is one group of processes. A guard, which waits outside that group, ends the group
when the run is over, however the run ended, so that nothing goes on computing for nobody.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines
from traitlets import default

# Reads a line when the run comes to its end, and none when the run is killed; then nobody else removes its folder. What
# is left of the group is first asked to go, since joblib's keeper of temporary files, which hears no such request,
# removes them as soon as it is the last one.
GUARD = """\
read -r line
killed=$?
if kill -s TERM -- "-$1"; then
    for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -s 0 -- "-$1" || break
        sleep 0.1
    done
    kill -s KILL -- "-$1"
fi
[ $killed = 0 ] || rm -rf -- "$2"
"""


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Callable[[int], None]]:
    """A function to call with the process id of a kernel that must not outlive this context, nor this process.

    If this process is killed, `folder` is removed as well.
    """
    guards = []

    def watch(process: int) -> None:
        command = ["sh", "-c", GUARD, "guard", str(process), str(folder)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        guards.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **quiet))

    try:
        yield watch
    finally:
        for guard in guards:
            guard.communicate(b"over\n")


def kernel_class(root: Path, folder: Path, started: Callable[[int], None]) -> type:
    """A kernel manager for the interpreter that runs this tool, whatever kernels the user has under the same name.

    What a kernel needs is kept in `folder`; `started` is called with the process id of each.
    """
    needs = environment(root, folder)  # now, since papermill changes the folder

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
            return KernelSpec(argv=command, env=needs, display_name="Python 3", language="python")

    class Kernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_python(self):
            return ThisPython(parent=self)

        @default("connection_file")
        def _in_the_folder(self):
            return str(folder / "connection.json")

        async def _async_launch_kernel(self, kernel_cmd: list[str], **options) -> None:
            await super()._async_launch_kernel(kernel_cmd, **options)
            started(self.provisioner.pid)

    return Kernel


class HandingEngine(NBClientEngine):
    """papermill's own engine, which hands over the notebook that it fills in, so that what ran is at hand however it ends."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name: str, *, handed: list, **options):
        handed.append(nb_man.nb)
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


papermill_engines.register("handing", HandingEngine)


def environment(root: Path, folder: Path) -> dict[str, str]:
    """What a kernel needs: this checkout's `shared` before any installed one, nobody's start-up files, whole paths."""
    changes = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no advice about frozen modules
    }
    if os.environ.get("UNROLLED_DATA"):
        changes["UNROLLED_DATA"] = str(Path(os.environ["UNROLLED_DATA"]).expanduser().resolve())
    return changes


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asked this process to stop; its argument is the signal."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM, and SIGHUP from a terminal that is closed, raise Stopped as Ctrl-C raises KeyboardInterrupt."""
    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]

    def stop(number: int, frame) -> None:
        for other in heard:  # one is enough: the next would interrupt the end of the kernel
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(signal.Signals(number))

    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
