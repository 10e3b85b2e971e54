"""Builds the one extension module, cattn._kernel, from src/.

CC names the compiler, on Windows too (clang-cl). CATTN_SANITIZE=address,undefined builds with those sanitizers,
CATTN_OPTIMIZE=0 with another level of optimization than 3 and with line numbers, CATTN_COVERAGE=1 with line tracing,
CATTN_EMULATE=1 the AVX-512 tables, VDPBF16PS included, as plain vectors that every processor runs (slowly).

A second build compiles nothing, unless a source, the flags, the compiler, Cython or NumPy changed. setuptools alone
would compile everything again each time: pip builds in a new environment, whose files are always newer than ours, and
an editable build goes to a new folder.
"""

import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TABLES = ["vec128", "neon", "avx2", "avx512", "avx512bf16", "amx"]
SOURCES = ["kernel.pyx", "system/pool.c", "system/cpu.c", *(f"tiles/{table}.c" for table in TABLES)]
SOURCES = [f"src/{name}" for name in SOURCES]
# What they include or cimport.
INCLUDED = [*Path("src").rglob("*"), *Path("cattn").glob("*")]
INCLUDED = sorted(str(path) for path in INCLUDED if path.suffix in (".pxd", ".h"))

if sys.platform == "win32" and "CC" in os.environ:
    # clang-cl, which takes gcc's language and has the vector tables. setuptools adds /GL, which it does not know.
    target = "aarch64" if sysconfig.get_platform() == "win-arm64" else "x86_64"
    compile_args = ["/O2", "/clang:-std=gnu11", f"--target={target}-pc-windows-msvc"]
    compile_args += ["-Wno-unused-command-line-argument"]
    link_args = []
elif sys.platform == "win32":
    compile_args, link_args = ["/O2", "/std:c11"], []
else:
    # With gnu11, and not with c11, gcc contracts products and sums into FMAs. -ffp-contract=fast is not here, because
    # Clang would then ignore its pragmas: target_begin.h turns contraction on, and portable.pxd off.
    # Nobody here reads floating-point exception flags or errno: without these two, gcc leaves every loop with a
    # comparison of numbers in it scalar.
    compile_args = ["-O3", "-std=gnu11", "-fno-trapping-math", "-fno-math-errno"]
    # Python's own flags ask for debugging information, nine tenths of the module. Of its symbols Python needs one,
    # and threadpoolctl another.
    compile_args += ["-g0", "-fvisibility=hidden"]
    link_args = ["-pthread", "-lm"]
if sys.platform == "linux":
    link_args += ["-Wl,--build-id=none"]  # it depends on the folder of the build

macros = [("NPY_NO_DEPRECATED_API", "NPY_1_22_API_VERSION")]
# Here, not in kernel.pyx: they hold for the .pxd files too. Divisions are C's, and no divisor is 0.
directives = {"language_level": 3, "cdivision": True, "boundscheck": False, "wraparound": False}
directives |= {"initializedcheck": False, "freethreading_compatible": True}

sanitizers = os.environ.get("CATTN_SANITIZE")
if level := os.environ.get("CATTN_OPTIMIZE", "1" if sanitizers else ""):
    compile_args += [f"-O{level}", "-g1"]  # lines, for reports
if sanitizers:
    # Python's own flags let signed numbers wrap, which the sanitizer would then not report.
    compile_args += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-fno-wrapv"]
    link_args += [f"-fsanitize={sanitizers}"]
    macros += [("CATTN_COMPACT", "1")]
if os.environ.get("CATTN_EMULATE"):
    macros += [("CATTN_EMULATE", "1")]
    compile_args += ["-Wno-psabi"]  # about vectors that the baseline passes in memory; all of it is inlined
coverage = bool(os.environ.get("CATTN_COVERAGE"))
if coverage:
    macros += [("CYTHON_TRACE_NOGIL", "1")]
    directives["linetrace"] = True

# The stamp is written whenever the flags differ from those of the last run, so that it is newer than what those built.
flags = {name: os.environ.get(name) for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED")}
flags |= {"Cython": Cython.__version__, "numpy": numpy.__version__}
flags = f"{compile_args} {link_args} {macros} {directives} {flags}\n"
stamp = Path("build", "flags.txt")
if not stamp.exists() or stamp.read_text(encoding="utf-8") != flags:
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(flags, encoding="utf-8")
last_change = max(os.path.getmtime(path) for path in ("setup.py", stamp, *SOURCES, *INCLUDED))


def is_current(path):
    """Return whether the file exists and was built after the last change of sources and flags."""
    return os.path.exists(path) and os.path.getmtime(path) > last_change


class BuildExt(build_ext):
    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            if not self.compiler.initialized:
                self.compiler.initialize(self.plat_name)
            if "CC" in os.environ:  # setuptools does not ask for it there
                self.compiler.cc = os.environ["CC"]
        compiler = getattr(self.compiler, "compiler", None)  # none on Windows, which says by itself what is missing
        if compiler and shutil.which(compiler[0]) is None:
            raise SystemExit(f"cattn is built by a C compiler, and {compiler[0]} is not there: install one or set CC")
        header = Path(sysconfig.get_path("include"), "Python.h")
        if not header.exists():
            raise SystemExit(f"cattn is built with Python's headers, and {header} is not there: install python3-dev")
        one_by_one = self.compiler.compile

        def compile_side_by_side(sources, **options):
            """Compile each source by a compiler of its own, because setuptools would compile one after the other."""
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                return [*chain.from_iterable(threads.map(lambda source: one_by_one([source], **options), sources))]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()

    def build_extension(self, extension):
        target = Path(self.get_ext_fullpath(extension.name))
        in_place = Path("cattn", target.name)  # from an earlier editable installation
        if is_current(in_place) and not self.force:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(in_place, target)
        else:
            self.force = True
            super().build_extension(extension)


kernel = Extension(
    "cattn._kernel",
    SOURCES,
    include_dirs=["src", "cattn", numpy.get_include()],
    define_macros=macros,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
if is_current("src/kernel.c"):
    kernel.sources[0] = "src/kernel.c"
    modules = [kernel]
else:
    modules = cythonize(
        [kernel], include_path=["src", "."], compiler_directives=directives, emit_linenums=coverage, force=True
    )
setup(ext_modules=modules, cmdclass={"build_ext": BuildExt})
