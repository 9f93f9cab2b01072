//! A disk that can be filled.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::wait::until;

/// Size of the disk: for keys, programs and a few hundred proofs.
const SIZE: &str = "8m";
/// A place where not even root can create a folder.
const UNWRITABLE: &str = "/proc";

/// A folder of artifacts on a disk of its own, if this test may mount one. Otherwise the folder of proofs is replaced,
/// while the disk is to be full, by one in which nothing can be created.
pub struct TinyDisk {
    dir: PathBuf,
    mounted: bool,
}

impl TinyDisk {
    /// Creates the disk with the keys and programs of `artifacts` on it.
    pub fn new(dir: PathBuf, artifacts: &Path) -> Self {
        fs::create_dir(&dir).unwrap();
        let mut mount = Command::new("mount");
        let options = format!("size={SIZE},mode=0700");
        let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&dir).output();
        let mounted = mounted.is_ok_and(|m| m.status.success());
        if mounted {
            eprintln!("the full disk: a tmpfs of {SIZE} bytes");
        } else {
            eprintln!("!! NO FULL DISK: this test may not mount one; {UNWRITABLE} takes its place");
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

    /// Fills the disk, so that no proof can be written.
    pub fn fill(&self) {
        if !self.mounted {
            // A worker may create the folder again in between.
            return until("the folder of proofs to go", || {
                let _ = fs::remove_dir_all(self.dir.join("proofs"));
                std::os::unix::fs::symlink(UNWRITABLE, self.dir.join("proofs")).ok()
            });
        }
        let mut junk = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("junk")).unwrap();
        for piece in [1 << 16, 1 << 10, 1] {
            while junk.write_all(&vec![0; piece]).is_ok() {}
        }
    }

    /// Frees the space again.
    pub fn free(&self) {
        if !self.mounted {
            return fs::remove_file(self.dir.join("proofs")).unwrap();
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
