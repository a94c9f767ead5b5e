"""Builds the extension shmzero._core. Everything else about the package stands in setup.cfg."""

from __future__ import annotations

import os
import platform
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

flags = ["-O3", "-Wall", "-Wextra", "-fno-math-errno"]
if platform.machine() in ("x86_64", "AMD64") and "-march" not in os.environ.get("CFLAGS", ""):
    flags.append("-march=x86-64-v2")  # POPCNT and byte shuffles: what the wheels of numpy 2.4 ask of a machine
if os.environ.get("SHMZERO_WERROR") == "1":
    flags.append("-Werror")
link_flags = ["-lrt", "-pthread"]
sanitizers = os.environ.get("SHMZERO_SANITIZE")  # for example address,undefined
if sanitizers:
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-g", "-O1"]
    link_flags.append(f"-fsanitize={sanitizers}")

extension = Pybind11Extension(
    "shmzero._core",
    sorted(glob("shmzero/csrc/bind/*.cpp")),
    depends=sorted(glob("shmzero/csrc/*/*.h")),
    include_dirs=["shmzero/csrc"],
    cxx_std=20,
    define_macros=[("SHMZERO_SANITIZED", "1")] if sanitizers else [],
    extra_compile_args=flags,
    extra_link_args=link_flags,
)

ParallelCompile("SHMZERO_BUILD_JOBS", default=0).install()
setup(ext_modules=[extension])
