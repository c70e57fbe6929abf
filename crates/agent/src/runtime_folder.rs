//! The directory for state that outlives an agent process: the Unix socket of the handover and the
//! keys of metadata tokens. Only the agent's own user may access it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// `f_type` of a tmpfs, and of a ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The reason why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the runtime directory {path}: {why}; set another one with --runtime-dir")]
pub struct FolderError {
    path: PathBuf,
    why: String,
}

/// The opened directory.
#[derive(Debug)]
pub struct RuntimeFolder {
    path: PathBuf,
    folder: OwnedFd,
    namespace: u64,
}

impl RuntimeFolder {
    /// Opens the directory, creating it without access for others.
    ///
    /// # Errors
    /// Returns a [`FolderError`] if it cannot be created, is a symbolic link, or belongs to another
    /// user.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let unusable = |why: String| FolderError {
            path: path.to_owned(),
            why,
        };
        let failed = |error: io::Error| unusable(error.to_string());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|_| unusable("it is not a directory owned by this user".into()))?;
        let found = rustix::fs::fstat(&folder).map_err(|errno| failed(errno.into()))?;
        if found.st_uid != rustix::process::geteuid().as_raw() {
            return Err(unusable("it is not a directory owned by this user".into()));
        }
        if found.st_mode & 0o077 != 0 {
            rustix::fs::fchmod(&folder, Mode::RWXU).map_err(|errno| failed(errno.into()))?;
        }
        let namespace = std::fs::metadata("/proc/self/ns/net")
            .map_err(failed)?
            .ino();
        Ok(Self {
            path: path.to_owned(),
            folder,
            namespace,
        })
    }

    /// Returns a file name for agents on `port` in this network namespace, so that unrelated agents
    /// never use the same file.
    pub fn name(&self, port: u16, suffix: &str) -> String {
        format!("agent-{port}-{}.{suffix}", self.namespace)
    }

    /// Returns the path of a file in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Returns whether files written here stay in memory.
    pub fn is_in_memory(&self) -> bool {
        rustix::fs::fstatfs(&self.folder).is_ok_and(|found| {
            // The type has another width on other platforms.
            #[allow(clippy::unnecessary_cast, clippy::allow_attributes)]
            IN_MEMORY.contains(&(found.f_type as i64))
        })
    }
}

impl AsFd for RuntimeFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("run/rolegate");
        RuntimeFolder::open(&inner).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&inner, open).unwrap();
        RuntimeFolder::open(&inner).unwrap();
        assert_eq!(std::fs::metadata(&inner).unwrap().mode() & 0o777, 0o700);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        assert!(RuntimeFolder::open(&link).is_err());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(RuntimeFolder::open(&folder.path().join("file")).is_err());
    }
}
