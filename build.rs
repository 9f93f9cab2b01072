//! Compiles `kernels/`: with nvcc for GPUs (feature `cuda`), with the C++ compiler for the host CPU
//! (`kernels-on-host`).

use std::path::Path;

/// Sources that are compiled both for GPUs and for the host CPU.
fn kernel_sources() -> Vec<String> {
    let mut sources: Vec<String> = std::fs::read_dir("kernels")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.path().to_str().map(String::from))
        .filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "cu" || extension == "cuh"))
        .collect();
    sources.sort();
    sources
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if cfg!(any(feature = "cuda", feature = "kernels-on-host")) {
        for source in kernel_sources() {
            println!("cargo::rerun-if-changed={source}");
        }
    }
    #[cfg(feature = "kernels-on-host")]
    on_host::build();
    #[cfg(feature = "cuda")]
    if let Err(why) = cuda::build() {
        eprintln!("{why}");
        std::process::exit(1);
    }
}

#[cfg(feature = "kernels-on-host")]
mod on_host {
    use std::env;
    use std::path::PathBuf;

    /// A shared library that the program loads at startup, so that scripts/kernels.sh can replace it with one that has
    /// the sanitizers, without recompiling the tests.
    const LIBRARY: &str = "libkernels_on_host.so";

    pub fn build() {
        println!("cargo::rerun-if-changed=kernels/host");
        println!("cargo::rerun-if-env-changed=CI");
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            // Field arithmetic is unusable without optimisation, whatever the profile.
            .opt_level(2)
            .extra_warnings(true)
            .warnings(true)
            .warnings_into_errors(env::var_os("CI").is_some())
            .flag("-pthread")
            // The carry flag is a thread-local variable that is accessed several times per multiplication.
            .flag("-ftls-model=initial-exec")
            // Calls within the library are direct: its symbols are never replaced.
            .flag("-fvisibility=hidden")
            .files(["kernels/host/host.cc", "kernels/host/fibers.cc"]);
        let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else {
            panic!("OUT_DIR: expected a folder, got nothing")
        };
        let mut link = build.get_compiler().to_command();
        link.arg("-shared").arg(format!("-Wl,-soname,{LIBRARY}")).arg("-o").arg(out.join(LIBRARY));
        let status = link.args(build.compile_intermediates()).status();
        assert!(status.as_ref().is_ok_and(|status| status.success()), "{link:?} failed: {status:?}");
        println!("cargo::rustc-link-search=native={}", out.display());
        println!("cargo::rustc-link-lib=dylib=kernels_on_host");
        // Cargo sets the library path for programs that it runs; this is for programs that are run by hand.
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", out.display());
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::ffi::OsString;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// Turing, Ampere, Ada, Hopper, and Blackwell in data centres and in workstations; for others, the driver compiles
    /// PTX. A GPU runs code for its own major architecture with its own or a lower minor number.
    const ARCHS: &str = "75 80 86 89 90 100 120";

    const NO_NVCC: &str = "The feature `cuda` needs nvcc, which was not found by NVCC, in PATH, under CUDA_HOME or \
        /usr/local/cuda, nor in target/nvcc. Install CUDA's toolkit (13.0 or later), or run scripts/nvcc.sh, which \
        puts \
        nvcc into target/nvcc, or set CUDA_ARCHS=none to build without device code.";

    pub fn build() -> Result<(), String> {
        // PATH is left out because it differs from shell to shell, and compiling takes minutes.
        for variable in ["CUDA_ARCHS", "NVCC", "CUDA_HOME"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR: expected a folder, got nothing")?);
        let archs = archs()?;
        if archs.is_empty() {
            return write(&out.join("kernels.rs"), &without_code());
        }
        let nvcc = nvcc().ok_or(NO_NVCC)?;
        println!("cargo::rerun-if-changed={}", nvcc.display());

        let intermediate = intermediate(&nvcc, &archs, &out)?;
        let parts = assemble(&nvcc, &archs, &intermediate, &out)?;
        let fatbin = out.join("kernels.fatbin");
        let mut join = Command::new(nvcc.with_file_name("fatbinary"));
        join.arg("-64").arg("--compress-all").arg(option("--create=", &fatbin));
        for (part, arch) in parts.iter().zip(&archs) {
            join.arg(option(&format!("--image3=kind=elf,sm={arch},file="), &part.code));
        }
        // For all other GPUs from the oldest architecture on, including those newer than this build, the driver
        // assembles PTX.
        join.arg(option(&format!("--image3=kind=ptx,sm={},file=", archs[0]), &intermediate));
        run(&mut join)?;

        let report: String = parts.into_iter().map(|part| part.report).collect();
        write(&out.join("ptxas.txt"), &report)?;
        write(&out.join("nvcc.txt"), &run(Command::new(&nvcc).arg("--version"))?)?;
        write(&out.join("kernels.rs"), &declarations(&fatbin, &archs))
    }

    /// Returns the requested architectures, ascending; empty for `none`.
    fn archs() -> Result<Vec<u32>, String> {
        // Empty counts as unset: Compose 1 passes a build argument that is missing from its environment as empty.
        let text = env::var("CUDA_ARCHS").ok().filter(|text| !text.is_empty()).unwrap_or_else(|| ARCHS.into());
        if text.trim() == "none" {
            return Ok(Vec::new());
        }
        let mut archs = Vec::new();
        for word in text.split([' ', ',', ';']).filter(|word| !word.is_empty()) {
            let arch = word.parse().map_err(|_| {
                format!("CUDA_ARCHS: expected `none` or compute capabilities such as \"{ARCHS}\", got \"{text}\"")
            })?;
            archs.push(arch);
        }
        if archs.is_empty() {
            return Err(format!(
                "CUDA_ARCHS: expected `none` or compute capabilities such as \"{ARCHS}\", got nothing"
            ));
        }
        archs.sort_unstable();
        archs.dedup();
        Ok(archs)
    }

    fn nvcc() -> Option<PathBuf> {
        if let Some(named) = env::var_os("NVCC").filter(|name| !name.is_empty()) {
            let named = PathBuf::from(named);
            // A bare name is looked up in PATH, as by a shell.
            return if named.components().count() > 1 { real(&named) } else { in_path(&named) };
        }
        let in_root = |root: &Path| real(&root.join("bin/nvcc"));
        in_path(Path::new("nvcc"))
            .or_else(|| in_root(Path::new(&env::var_os("CUDA_HOME")?)))
            .or_else(|| in_root(Path::new("/usr/local/cuda")))
            .or_else(|| real(Path::new("target/nvcc/nvcc")))
    }

    fn in_path(name: &Path) -> Option<PathBuf> {
        env::split_paths(&env::var_os("PATH")?).find_map(|folder| real(&folder.join(name)))
    }

    /// Resolves links to a program: nvcc looks for its companions in its own folder, and so does this script.
    fn real(path: &Path) -> Option<PathBuf> {
        fs::canonicalize(path).ok().filter(|path| path.is_file())
    }

    /// Compiles PTX for the oldest architecture, which works for all of them, because the sources must not depend on
    /// the architecture. This takes most of the time, so it is done once.
    fn intermediate(nvcc: &Path, archs: &[u32], out: &Path) -> Result<PathBuf, String> {
        for source in super::kernel_sources() {
            let text = fs::read_to_string(&source).map_err(|error| format!("{source}: {error}"))?;
            if text.contains("__CUDA_ARCH__") {
                return Err(format!("{source}: expected the same code for all architectures, got __CUDA_ARCH__"));
            }
        }
        let intermediate = out.join("kernels.ptx");
        let mut command = Command::new(nvcc);
        command
            .args(["-ptx", "-std=c++17", "-O3", "-Werror", "all-warnings", "kernels/kernels.cu"])
            .arg(format!("-arch=compute_{}", archs[0]))
            .arg("-o")
            .arg(&intermediate);
        run(&mut command)?;
        Ok(intermediate)
    }

    /// Machine code for one architecture, and the assembler's report.
    struct Part {
        code: PathBuf,
        report: String,
    }

    /// Assembles machine code for each architecture, several at a time.
    fn assemble(nvcc: &Path, archs: &[u32], intermediate: &Path, out: &Path) -> Result<Vec<Part>, String> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).clamp(1, archs.len());
        let next = AtomicUsize::new(0);
        let mut parts = thread::scope(|scope| {
            let worker = || {
                let mut parts = Vec::new();
                // The newest first, because it takes longest.
                while let Some(index) = archs.len().checked_sub(1 + next.fetch_add(1, Ordering::Relaxed)) {
                    parts.push((index, assemble_one(nvcc, archs[index], intermediate, out)?));
                }
                Ok(parts)
            };
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_fold(Vec::new(), |mut all, worker| {
                let parts: Result<_, String> =
                    worker.join().map_err(|_| "a thread that ran nvcc failed".to_string())?;
                all.extend(parts?);
                Ok::<_, String>(all)
            })
        })?;
        parts.sort_by_key(|(index, _)| *index);
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    }

    fn assemble_one(nvcc: &Path, arch: u32, intermediate: &Path, out: &Path) -> Result<Part, String> {
        let code = out.join(format!("kernels.{arch}.cubin"));
        let mut command = Command::new(nvcc);
        command
            .args(["-cubin", "-O3", "-Werror", "all-warnings", "--ptxas-options=-v"])
            .arg(format!("-arch=sm_{arch}"))
            .arg(intermediate)
            .arg("-o")
            .arg(&code);
        let report = run(&mut command)?;
        Ok(Part { code, report })
    }

    /// Runs a command to its end and returns its output.
    fn run(command: &mut Command) -> Result<String, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = command.output().map_err(|error| format!("{name} could not be run: {error}"))?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(said) } else { Err(format!("{name} failed ({}):\n{said}", output.status)) }
    }

    fn option(name: &str, path: &Path) -> OsString {
        let mut option = OsString::from(name);
        option.push(path);
        option
    }

    /// Returns the Rust code that `src/backend/cuda/driver/nvidia/open.rs` includes.
    fn declarations(fatbin: &Path, archs: &[u32]) -> String {
        // Aligned because the driver reads the image in words.
        let image = format!(
            "#[repr(C, align(64))]\nstruct Aligned<T: ?Sized>(T);\n\
             static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!({fatbin:?}));\n"
        );
        image + &constants("Some(&IMAGE.0)", archs)
    }

    /// Returns the same declarations for a build without device code. The test double of the driver's library, which
    /// has its own kernels, still gets an image.
    fn without_code() -> String {
        if cfg!(feature = "kernels-on-host") {
            constants("Some(b\"the twin's\")", &[75])
        } else {
            constants("None", &[])
        }
    }

    fn constants(value: &str, archs: &[u32]) -> String {
        format!(
            "/// Machine code for each of [`ARCHS`], and PTX for the oldest; `None` in a build without device code.\n\
             pub static FATBIN: Option<&[u8]> = {value};\n\
             /// Compute capabilities, as ten times the major number plus the minor one, ascending.\n\
             pub const ARCHS: &[u32] = &{archs:?};\n"
        )
    }

    fn write(path: &Path, text: &str) -> Result<(), String> {
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}
