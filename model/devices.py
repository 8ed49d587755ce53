"""Names the devices and cores that there are, and loads once what threads share."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

_Result = TypeVar("_Result")


class loaded_once(functools.cached_property[Any]):
    """A cached property that one thread computes while the others wait for it.

    ``functools.cached_property`` itself does so up to Python 3.11; from 3.12 on every thread
    computes the value. Where it is a network, each of them then takes the memory and the time.
    """

    def __init__(self, func: Callable[[Any], Any]) -> None:
        super().__init__(func)
        self._computing = threading.RLock()

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        """The value, computed where it is not known yet."""
        with self._computing:
            return super().__get__(instance, owner)


class MachineError(Exception):
    """A network fails whatever it is given: its process or its device is broken."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
EXIT_BROKEN = 71
"""The exit code of a worker process that ends because it is broken: that of a system error."""
_broken_workers_end = False


def end_when_broken() -> None:
    """Has this process end when it is broken: it is a worker, and its runner has others."""
    global _broken_workers_end
    _broken_workers_end = True


def require_working(probe: Callable[[], object], error: Exception) -> None:
    """Tells whether the machine is to blame for an error, and not what the network was given.

    After some failures of a GPU, everything that its process computes on it fails: each row would
    then look as if it could not be separated.

    Args:
        probe: runs the network on something small.
        error: that the network raised before.

    Raises:
        MachineError: the probe raises a RuntimeError, and not for lack of memory. A worker process
            ends instead, so that its runner starts another or gives its work to others.
    """
    try:
        probe()
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as err:
        # What is lost makes torch raise RuntimeErrors; other errors say that a probe does not suit.
        if not isinstance(err, RuntimeError) or is_out_of_memory(err):
            return
        message = f"the network fails on a probe too, so the machine is at fault: {first_line(err)}"
        if _broken_workers_end:
            sys.stderr.write(f"this worker ends: {message}; before: {error}\n")
            sys.stderr.flush()
            os._exit(EXIT_BROKEN)
        raise MachineError(message) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too small, of a device or of the machine."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(t in str(error).lower() for t in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


AUTO = "auto"
EXPECTED = "auto, cpu, cuda or cuda:N"
_NUMBER = r"(0|[1-9]\d{0,3})"  # torch takes no zeros before it
_NAME = re.compile(rf"auto|cpu|cuda(:{_NUMBER}(,{_NUMBER})*)?")
_THREADS = threading.RLock()
_DRIVER = re.compile(r"Kernel Module(?: for \S+)?\s+(\S+)")
_CAPTURING = threading.Lock()
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")
_MEANT = re.compile(r"(gpu|cuda|nvidia)?[:_ -]?(\d{1,4})?", re.IGNORECASE)


def require_name(device: str, name: str = "--device") -> None:
    """Checks the spelling of a device's name, without torch and without looking for the device.

    Args:
        device: the name.
        name: what messages call the setting.

    Raises:
        ValueError: no device is called so; the message says which one is near.
    """
    if _NAME.fullmatch(device):
        return
    found = _MEANT.fullmatch(device.strip())
    meant = ""
    if device.strip().lower() in (AUTO, "cpu"):
        meant = f"; did you mean {device.strip().lower()}?"
    elif found is not None and device.strip():
        number = f":{int(found[2])}" if found[2] else ""
        meant = f"; did you mean cuda{number}?"
    raise ValueError(f"{name} {device}: expected {EXPECTED}{meant}")


def resolved(device: str, name: str = "--device") -> str:
    """A torch device of this machine; for ``auto`` the GPU, where there is one.

    Args:
        device: its name.
        name: what messages call the setting.

    Raises:
        ValueError: no device is called so, this machine does not have it, or they are several.
    """
    found = gpus(device, name)
    if device == AUTO:
        return "cuda" if found else "cpu"
    if "," in device:
        raise ValueError(f"{name} {device}: a process computes on one GPU, and these are several")
    return device


def num_gpus() -> int:
    """Returns how many GPUs torch finds for this process."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpus(device: str, name: str = "--device") -> list[int]:
    """The numbers of the GPUs that a device's name stands for: ``auto`` and ``cuda`` for all.

    Args:
        device: its name.
        name: what messages call the setting.

    Raises:
        ValueError: no device is called so, or this machine does not have it.
    """
    require_name(device, name)
    if device == "cpu":
        return []
    count = num_gpus()
    if count == 0 and device != AUTO:
        raise ValueError(
            f"{name} {device}: {_why_none()}; take {name} auto or {name} cpu ({versions()})"
        )
    numbers = device.partition(":")[2]
    found = [int(each) for each in numbers.split(",")] if numbers else list(range(count))
    if any(number >= count for number in found):
        has = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise ValueError(f"{name} {device}: this machine has {has}")
    return found


VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that tells a process which GPUs there are; it is read once, at the first use."""


def visible_gpus(device: str) -> list[str]:
    """What `VISIBLE` is to be in processes that have one GPU each, of those that a name stands for.

    Raises:
        ValueError: as :func:`gpus`.
    """
    names = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return [names[number] if names else str(number) for number in gpus(device)]


_BF16_INSTRUCTIONS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""As Linux names them, of Intel and AMD, and of Arm."""
_PROCESSOR = Path("/proc/cpuinfo")


def require_precision(precision: str, device: str, name: str = "--precision") -> None:
    """Checks that a device computes in a precision itself.

    Where it has no instructions for bfloat16, what stands in for them takes several times as long
    as float32.

    Args:
        precision: ``fp32``, ``tf32`` or ``bf16``.
        device: a torch device of this machine.
        name: what messages call the setting.

    Raises:
        ValueError: it does not; the message says why, and what to take instead.
    """
    if precision == "bf16":
        problem = _without_bf16(device)
    elif precision == "tf32":
        problem = _without_tf32(device)
    else:
        return
    if problem is not None:
        raise ValueError(f"{name} {precision}: {problem}; take {name} fp32")


def _without_bf16(device: str) -> str | None:
    if device == "cpu":
        found = _instructions()
        if found is None or found & _BF16_INSTRUCTIONS:
            return None
        return (
            "this processor has no instructions for bfloat16 (AVX-512 BF16, AMX or Arm's BF16), "
            "and emulating them is several times slower than fp32"
        )
    import torch

    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if native else f"{torch.cuda.get_device_name()} has no bfloat16"


def _without_tf32(device: str) -> str | None:
    if device == "cpu":
        return "only GPUs compute in it, and this run is on the CPU"
    import torch

    with torch.cuda.device(device):
        nvidia = torch.version.hip is None
        if nvidia and torch.cuda.get_device_capability() >= (8, 0):
            return None
        return f"{torch.cuda.get_device_name()} has no TF32"


def _instructions() -> frozenset[str] | None:
    """The names of the processor's extensions; None where the kernel does not say."""
    try:
        lines = _PROCESSOR.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        field, _, names = line.partition(":")
        if field.strip() in ("flags", "Features"):
            return frozenset(names.split())
    return None


def required_gpu(device: str = AUTO) -> str:
    """A GPU of this machine, for a worker that was to have one.

    Args:
        device: which; ``auto`` for the first.

    Raises:
        ValueError: torch cannot compute on it; the message has the versions that decide it.
    """
    require_name(device)
    count = num_gpus()
    indices = [int(number) for number in (device.partition(":")[2] or "0").split(",")]
    if count == 0:
        reason: str | None = _why_none()
    elif max(indices) >= count:
        reason = f"it has no {device}, only {count}"
    else:
        reason = next(filter(None, map(_without_code, indices)), None)
    if reason is None:
        return "cuda" if device == AUTO else device
    said = versions() if "without CUDA" in reason else f"{reason}; {versions()}"
    raise ValueError(f"--accelerator asked for a GPU, which this machine cannot compute on: {said}")


def chosen(device: str, *, every: bool = False) -> str:
    """What a device's name stands for on this machine, with the reason, for people and records.

    Args:
        device: its name.
        every: whether all GPUs are taken that it can stand for, one by each worker process.
    """
    numbers = gpus(device) if every else []
    found = f"cuda:{','.join(map(str, numbers))}" if numbers else resolved(device)
    if found != "cpu":
        import torch

        cards = [torch.cuda.get_device_name(each) for each in numbers or (found,)]
        return f"{found} ({', '.join(cards)}; {versions()})"
    if device == found:
        return found
    import torch

    built = torch.version.cuda is not None or torch.version.hip is not None
    return f"{found} ({f'{_why_none()}; {versions()}' if built else versions()})"


def versions() -> str:
    """What torch is built for, and which NVIDIA driver this machine has."""
    import torch

    built = "without CUDA"
    if torch.version.cuda is not None:
        built = f"for CUDA {torch.version.cuda}"
    elif torch.version.hip is not None:
        built = f"for ROCm {torch.version.hip}"
    return f"torch {torch.__version__} is built {built}, {_driver()}"


def _driver() -> str:
    """The driver as its kernel module and its library name themselves."""
    number = None
    with (
        contextlib.suppress(OSError),
        open("/proc/driver/nvidia/version", encoding="ascii") as file,
    ):
        found = _DRIVER.search(file.read())
        number = found[1] if found else None
    cuda = None
    with contextlib.suppress(OSError, AttributeError):
        value = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(value)) == 0:
            cuda = f"{value.value // 1_000}.{value.value % 1_000 // 10}"
    if number is None and cuda is None:
        return "no NVIDIA driver is installed"
    suits = "whose library cannot be loaded" if cuda is None else f"for CUDA {cuda} and older"
    return f"the NVIDIA driver is {number or 'not named'}, {suits}"


def _why_none() -> str:
    """Why torch has no GPU here."""
    import torch

    built = torch.version.cuda is not None or torch.version.hip is not None
    return "torch finds no GPU on this machine" if built else "torch is built without CUDA"


def _without_code(index: int) -> str | None:
    """Says so where torch has no code for a GPU: it finds it, and its first operation fails."""
    import torch

    if torch.version.cuda is None:
        return None
    own = torch.cuda.get_device_capability(index)
    built = torch.cuda.get_arch_list()
    for found in map(_ARCHITECTURE.fullmatch, built):
        if found is None:
            continue
        major, minor = int(found[2]), int(found[3])
        same = found[1] == "sm" and major == own[0] and minor <= own[1]
        if same or (found[1] == "compute" and (major, minor) <= own):
            return None
    return (
        f"torch has no code for {torch.cuda.get_device_name(index)} (sm_{own[0]}{own[1]}), only "
        f"for {', '.join(built)}"
    )


def cores() -> int:
    """Returns how many cores this process may use: by its affinity and by the quota of its cgroup.

    A container of 2 cores on a machine of 64 has 2: with more threads than that each would be
    stopped for most of the time.
    """
    import joblib

    return int(joblib.cpu_count())


@contextlib.contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """Has torch compute each operation on one thread, and restores the setting afterwards.

    How an operation is divided among threads can show in the last bits of its result. The setting
    is the process's: while one thread is inside, others wait to enter.
    """
    import torch

    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def torch_as_it_comes() -> Iterator[None]:
    """Has this thread compute without autocast and make tensors on the CPU, whatever is set.

    The settings are a caller's, for computations of its own, and are back afterwards.
    """
    import torch

    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Has torch make tensors of float32 where no type is said, and restores the setting afterwards.

    The setting is the process's: while one thread is inside, others wait to enter.
    """
    import torch

    with _THREADS:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def on_stream(stream: torch.cuda.Stream, function: Callable[[], _Result]) -> _Result:
    """Launches a function's operations on a stream, after all before and before all later ones.

    Libraries set themselves up at their first call in a thread or on a stream, which a capture does
    not allow: what is to be captured has to have run in this way, on the thread that captures.
    """
    import torch

    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = function()
    current.wait_stream(stream)
    return result


def captured(
    function: Callable[[], _Result], stream: torch.cuda.Stream, pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """Makes a function's operations one CUDA graph, which is launched as a whole.

    Args:
        function: does the same to the same tensors at every call, and waits for none of them.
        stream: that :func:`on_stream` ran the function on before.
        pool: memory to share with other graphs that run one after the other.

    Returns:
        The graph, and the tensors that hold the function's results once it was replayed.

    Raises:
        RuntimeError: something in it cannot be captured, or memory is too small.
    """
    import torch

    before = torch.cuda.current_stream(stream.device)
    graph = torch.cuda.CUDAGraph()
    with _CAPTURING, torch.cuda.device(stream.device):  # torch captures one at a time in a process
        try:
            # Other threads may go on; torch's default would have their allocations end the capture.
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                result = function()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails would stay on its own stream
    return graph, result
