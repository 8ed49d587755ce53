from __future__ import annotations

import builtins
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import devices

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_a_device_is_called_as_torch_calls_it(device: str) -> None:
    devices.require_name(device)


@pytest.mark.parametrize(
    ("device", "meant"),
    [
        ("gpu", "; did you mean cuda?"),
        ("GPU:1", "; did you mean cuda:1?"),
        ("CUDA", "; did you mean cuda?"),
        ("cuda0", "; did you mean cuda:0?"),
        ("cuda:", "; did you mean cuda?"),
        ("1", "; did you mean cuda:1?"),
        ("cuda:01", "; did you mean cuda:1?"),
        ("CPU", "; did you mean cpu?"),
        (" auto", "; did you mean auto?"),
        ("mps", ""),
        ("tpu", ""),
        ("", ""),
        ("cuda:one", ""),
        ("cuda:99999999999", ""),
    ],
)
def test_another_name_is_refused_with_the_near_one(device: str, meant: str) -> None:
    with pytest.raises(ValueError, match="--device") as refused:
        devices.require_name(device)
    assert str(refused.value) == (f"--device {device}: expected auto, cpu, cuda or cuda:N{meant}")


def test_a_machine_without_a_gpu_computes_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (devices.resolved("auto"), devices.resolved("cpu")) == ("cpu", "cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match="--device cuda:1: torch is built without CUDA; take"):
        devices.resolved("cuda:1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match="--device cuda: torch finds no GPU on this machine"):
        devices.resolved("cuda")


def test_a_gpu_that_was_asked_for_is_there_or_the_versions_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "_driver", lambda: "the NVIDIA driver is 535.1, for CUDA 12.2")
    with pytest.raises(ValueError, match="asked for a GPU") as refused:
        devices.required_gpu()
    said = f"torch {torch.__version__} is built for CUDA 13.0, the NVIDIA driver is 535.1, for CUDA"
    assert said in str(refused.value)
    assert devices.chosen("auto").startswith("cpu (torch finds no GPU on this machine; torch ")
    assert devices.chosen("cpu") == "cpu"


@pytest.mark.parametrize(
    ("built", "own", "usable"),
    [
        (["sm_75", "sm_80"], (8, 9), True),  # an L4 runs the code of an A100
        (["sm_75", "sm_90a"], (8, 0), False),
        (["sm_75", "sm_80"], (7, 0), False),  # a V100
        (["sm_80", "compute_90"], (12, 0), True),
    ],
)
def test_a_gpu_that_the_build_has_no_code_for_is_none(
    built: list[str], own: tuple[int, int], usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: own)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    if usable:
        assert devices.required_gpu() == "cuda"
        return
    with pytest.raises(ValueError, match=r"torch has no code for a card \(sm_\d\d\), only for sm_"):
        devices.required_gpu()


def test_the_driver_is_named_or_said_to_be_missing() -> None:
    assert re.fullmatch(
        r"no NVIDIA driver is installed|the NVIDIA driver is (not named|[\d.]+), .+",
        devices._driver(),
    )


def test_a_gpu_that_the_machine_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [devices.resolved(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        *("cuda", "cuda", "cuda:1", "cpu")
    ]
    with pytest.raises(ValueError, match=r"--device cuda:2: .* has 2 GPUs, cuda:0 to cuda:1"):
        devices.resolved("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--device cuda:9: this machine has one GPU, cuda:0"):
        devices.resolved("cuda:9")


def test_a_name_is_looked_at_without_torch() -> None:
    code = (
        "import sys; from model import devices; devices.require_name('cpu'); "
        "devices.resolved('cpu'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        None,
        ValueError("no such label"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_machine_that_can_do_something_is_not_to_blame(error: Exception | None) -> None:
    devices.require_working(
        lambda: None if error is None else _fail(error), RuntimeError("shapes do not match")
    )


def test_a_machine_that_can_do_nothing_is_to_blame() -> None:
    with pytest.raises(devices.MachineError, match=r"at fault: RuntimeError: lost$") as raised:
        devices.require_working(lambda: _fail(RuntimeError("lost\nand more")), ValueError("first"))
    assert str(raised.value.__cause__) == "first"


def test_a_worker_that_can_do_nothing_ends() -> None:
    code = """
from model import devices
def probe(): raise RuntimeError("lost")
devices.end_when_broken()
devices.require_working(lambda: None, RuntimeError("first"))
print("goes on", flush=True)
devices.require_working(probe, RuntimeError("first"))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (devices.EXIT_BROKEN, "goes on\n")
    assert run.stderr.startswith("this worker ends: the network fails on a probe too")
    assert run.stderr.rstrip().endswith("RuntimeError: lost; before: first")


def test_cores_are_those_that_the_process_may_use() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}])\n"
        "from model import devices; print(devices.cores())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert run.stdout == b"1\n"


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("max 100000", 5)])
def test_cores_are_those_of_the_containers_quota(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quota of cgroup v2 stands in one file of the container."""
    name = "/sys/fs/cgroup/cpu.max"
    (tmp_path / "cpu.max").write_text(quota)
    opened, exists = open, os.path.exists
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    monkeypatch.setattr(os.path, "exists", lambda path: path == name or exists(path))
    monkeypatch.setattr(
        builtins,
        "open",
        lambda path, *more: opened(tmp_path / "cpu.max" if path == name else path, *more),
    )
    assert devices.cores() == expected


CPUINFO = {
    "vendor_id : X\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nflags : avx512_bf16\n": False,
    "flags\t\t: fpu avx512f avx512_bf16\n": True,
    "flags\t\t: fpu amx_bf16 amx_tile\n": True,
    "Features\t: fp asimd bf16 i8mm\n": True,
    "Features\t: fp asimd svebf16\n": False,
    "Hardware : unheard of\n": True,  # nothing is known: nothing is refused
}


@pytest.mark.parametrize("text", CPUINFO)
def test_bfloat16_needs_a_processor_with_instructions_for_it(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(devices, "_PROCESSOR", tmp_path / "cpuinfo")
    devices.require_precision("fp32", "cpu")
    if CPUINFO[text]:
        devices.require_precision("bf16", "cpu")
        return
    with pytest.raises(ValueError, match=r"--precision bf16: this processor .*; take .* fp32$"):
        devices.require_precision("bf16", "cpu")


def test_bfloat16_is_not_refused_where_the_kernel_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_PROCESSOR", tmp_path / "none")
    devices.require_precision("bf16", "cpu")


def test_tf32_is_for_gpus() -> None:
    with pytest.raises(ValueError, match=r"precision tf32: only GPUs compute in it, .* fp32$"):
        devices.require_precision("tf32", "cpu", "precision")


@pytest.mark.parametrize(
    ("capability", "tf32", "bf16"), [((7, 5), False, False), ((8, 0), True, True)]
)
def test_a_gpu_is_asked_what_it_computes_in(
    capability: tuple[int, int], tf32: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        torch.cuda, "device", lambda name: asked.append(name) or contextlib.nullcontext()
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.version, "hip", None)
    for precision, native in (("tf32", tf32), ("bf16", bf16)):
        if native:
            devices.require_precision(precision, "cuda:1")
        else:
            with pytest.raises(ValueError, match=f"--precision {precision}: Some Card has no "):
                devices.require_precision(precision, "cuda:1")
    assert set(asked) == {"cuda:1"}
