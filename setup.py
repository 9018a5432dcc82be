"""Compiles the kernels in lockgate/wire where there is a C compiler; without one they are imported as plain Python, slower.

LOCKGATE_REQUIRE_KERNELS in the environment makes a build without them fail: for images and wheels.
Everything else about the build stands in pyproject.toml.
"""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The sanitizer build of `make soak` sets LOCKGATE_KERNEL_CFLAGS.
CFLAGS = os.environ.get("LOCKGATE_KERNEL_CFLAGS", "-O3 -g0").split()
KERNELS = ["columns", "cri", "jaeger", "opencensus_spans", "otlp", "records", "resources", "series", "thrift"]


class OptionalBuildExt(build_ext):
    """A missing or broken compiler makes the install slower to run, not impossible; it says so."""

    def run(self):  # type: ignore[no-untyped-def]
        try:
            super().run()
        except Exception as error:  # whatever the toolchain raises: the pure-Python modules are complete
            if os.environ.get("LOCKGATE_REQUIRE_KERNELS"):
                raise
            sys.stderr.write(f"lockgate: kernels not compiled ({error}); they run as plain Python, many times slower\n")


def kernels() -> list[Extension]:
    try:
        from Cython.Build import cythonize
    except ImportError:
        if os.environ.get("LOCKGATE_REQUIRE_KERNELS"):
            raise
        return []
    extensions = [
        Extension(f"lockgate.wire.{name}", [f"src/lockgate/wire/{name}.py"], extra_compile_args=CFLAGS, extra_link_args=CFLAGS)
        for name in KERNELS
    ]
    return cythonize(extensions, language_level=3)  # type: ignore[no-any-return]


setup(ext_modules=kernels(), cmdclass={"build_ext": OptionalBuildExt})
