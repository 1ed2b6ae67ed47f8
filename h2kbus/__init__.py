"""h2kbus: a message bus for virtual-machine disk jobs over NATS JetStream."""

from h2kbus.client import Bus, connect
from h2kbus.errors import H2KBusError
from h2kbus.settings import ConnectionSettings
from subjects.events import ProgressEvent
from subjects.record import JobRecord
from subjects.result import JobResult
from subjects.spec import ArtifactPolicy, Audit, ExecutionPolicy, ImageSpec, JobSpec
from subjects.states import State

__version__ = "0.1.0"

__all__ = [
    "ArtifactPolicy",
    "Audit",
    "Bus",
    "ConnectionSettings",
    "ExecutionPolicy",
    "H2KBusError",
    "ImageSpec",
    "JobRecord",
    "JobResult",
    "JobSpec",
    "ProgressEvent",
    "State",
    "__version__",
    "connect",
]
