//! A disk that can be full.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room on it: for keys, programs and a few hundred proofs.
const SIZE: &str = "8m";

/// A folder of artifacts on a disk of its own where this test may mount one. Elsewhere a folder in which no proof can
/// be made takes the full disk's place.
pub struct TinyDisk {
    dir: PathBuf,
    mounted: bool,
}

impl TinyDisk {
    /// With the keys and programs of `artifacts` on it.
    pub fn new(dir: PathBuf, artifacts: &Path) -> Self {
        fs::create_dir(&dir).unwrap();
        let mut mount = Command::new("mount");
        let options = format!("size={SIZE},mode=0700");
        let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).output();
        let mounted = mounted.is_ok_and(|m| m.status.success());
        if mounted {
            eprintln!("the full disk: a tmpfs of {SIZE} bytes");
        } else {
            eprintln!(
                "!! NO FULL DISK: this test may not mount one; a file in place of the folder of proofs stands in"
            );
        }
        for folder in ["zkeys", "wasms", "proofs"] {
            fs::create_dir(dir.join(folder)).unwrap();
        }
        for folder in ["zkeys", "wasms"] {
            for file in fs::read_dir(artifacts.join(folder)).unwrap().flatten() {
                fs::copy(file.path(), dir.join(folder).join(file.file_name())).unwrap();
            }
        }
        Self { dir, mounted }
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.dir.display())
    }

    /// No proof can be written from now on.
    pub fn fill(&self) {
        if !self.mounted {
            fs::rename(self.dir.join("proofs"), self.dir.join("away")).unwrap();
            return fs::write(self.dir.join("proofs"), "").unwrap();
        }
        let mut junk = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("junk")).unwrap();
        for piece in [1 << 16, 1 << 10, 1] {
            while junk.write_all(&vec![0; piece]).is_ok() {}
        }
    }

    /// There is room again.
    pub fn free(&self) {
        if !self.mounted {
            fs::remove_file(self.dir.join("proofs")).unwrap();
            return fs::rename(self.dir.join("away"), self.dir.join("proofs")).unwrap();
        }
        fs::remove_file(self.dir.join("junk")).unwrap();
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}
