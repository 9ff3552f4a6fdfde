"""What pyproject.toml cannot say: wheels bring the CPU kernels as a library. See CONTRIBUTING.md, "Wheels"."""

import platform
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

from build_backend import REQUIRED, compiler, why_no_library

PACKAGE = "qsam2_ao.native"
FLAGS = {
    f"{PACKAGE}.{compiler.packaged_library(flags).stem}": flags
    for flags in map(compiler.flags, compiler.KINDS.get(platform.machine(), {}))
}


class BuildKernels(build_ext):
    """Compile a library for each kind of CPU; an editable install's are compiled at first use."""

    def run(self) -> None:
        """Run it, unless the install is editable."""
        if not self.editable_mode:
            super().run()

    def get_ext_filename(self, fullname: str) -> str:
        """The library has no name of an interpreter: it needs none."""
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        """Compile with the first compiler that can, into the wheel."""
        library = Path(self.get_ext_fullpath(ext.name))
        for other in library.parent.glob("kernels-*.so"):
            if f"{PACKAGE}.{other.stem}" not in FLAGS:
                other.unlink()  # of an earlier build
        if compiler.is_whole(library):
            return
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise CompileError("torch is not in the build environment: install it and add --no-build-isolation")
        library.parent.mkdir(parents=True, exist_ok=True)
        reasons = []
        for command in compiler.compilers():
            try:
                compiler.compile_kernels(command, FLAGS[ext.name], Path(torch.origin).parent, library)
                compiler.seal(library)
                return
            except (compiler.CompileError, OSError) as error:
                library.unlink(missing_ok=True)
                reasons.append(str(error))
        raise CompileError(" ".join(reasons))


class KernelsWheel(bdist_wheel):
    """A wheel for a platform if it has a library, and for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-PLATFORM``, or ``py3-none-any`` without a library."""
        self.root_is_pure = not list(Path(self.bdist_dir).rglob("kernels-*.so"))
        return (self.python_tag, "none", super().get_tag()[2])


reason = why_no_library()
if reason is None:
    extensions = [Extension(name, [], optional=not REQUIRED) for name in FLAGS]
else:
    print(f"No wheel's CPU kernels are compiled: {reason}")
    extensions = []
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels, "bdist_wheel": KernelsWheel})
