"""Builds the extension shmzero._core. Everything else about the package stands in setup.cfg."""

from __future__ import annotations

import os
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

flags = ["-O3", "-Wall", "-Wextra", "-fno-math-errno"]
if os.environ.get("SHMZERO_WERROR") == "1":
    flags.append("-Werror")
link_flags = ["-lrt", "-pthread"]
sanitizers = os.environ.get("SHMZERO_SANITIZE")  # for example address,undefined
if sanitizers:
    flags += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-g", "-O1"]
    link_flags.append(f"-fsanitize={sanitizers}")

extension = Pybind11Extension(
    "shmzero._core",
    sorted(glob("shmzero/csrc/bind*.cpp")),
    depends=sorted(glob("shmzero/csrc/*.h")),
    cxx_std=20,
    define_macros=[("SHMZERO_SANITIZED", "1")] if sanitizers else [],
    extra_compile_args=flags,
    extra_link_args=link_flags,
)

ParallelCompile("SHMZERO_BUILD_JOBS", default=0).install()
setup(ext_modules=[extension])
