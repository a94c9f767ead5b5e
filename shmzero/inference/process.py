"""The inference process: attaches to the segment, makes the device, serves."""

from __future__ import annotations

from shmzero import _core
from shmzero.errors import ConfigError, ModelFailed
from shmzero.inference.factory import make_device
from shmzero.inference.loop import BatchLoop
from shmzero.inference.messages import COMMANDS, Command, DeviceRefused, InferenceSpec, Ready
from shmzero.processes.child import child_main
from shmzero.processes.line_socket import LineSocket


class ParentControl(LineSocket[Command]):
    """The parent's word in the batch loop: it sends the commands and hears the events."""

    def commands(self) -> list[Command]:
        return self.receive()

    def failed(self, error: ModelFailed) -> None:
        """A batch that failed ends the process; the one that takes its place runs the batch again."""
        raise error


def run(spec: InferenceSpec) -> int:
    """The process: attach, make the device, shake hands, serve. Returns the exit code."""
    control = ParentControl(spec.control_fd, COMMANDS)
    try:
        device = make_device(spec.device)
    except ConfigError as error:
        control.send(DeviceRefused(str(error)))
        return 2
    segment = _core.Segment.attach(spec.segment_fd)
    port = _core.ServerPort(segment, spec.server, spec.epoch)
    control.send(Ready(getattr(device, "description", spec.device.evaluator)))
    BatchLoop(port, device, control, spec.version, spec.timeout_ms, spec.spin_us).run()
    return 0


if __name__ == "__main__":
    child_main(InferenceSpec, run)
