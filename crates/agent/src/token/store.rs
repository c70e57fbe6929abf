//! Storage of the keys of metadata tokens for the next agent process: in the runtime directory, and
//! only if that is in memory. The keys are never on a disk, and are gone after a reboot.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{KeyRing, RING_LENGTH};
use crate::runtime_folder::RuntimeFolder;

const VERSION: u8 = 1;
/// Size of a version byte and a ring.
const LENGTH: usize = 1 + RING_LENGTH;
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The reason why keys cannot be stored, or stored keys are not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is on a disk.
    #[error(
        "the runtime directory is not a tmpfs, and keys of metadata tokens must not be written to disk"
    )]
    OnDisk,
    /// The agent did not write the file.
    #[error("ignoring the key file of metadata tokens: {0}")]
    Untrusted(&'static str),
    /// The directory cannot be read or written.
    #[error("cannot store the keys of metadata tokens: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for StoreError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// The key file.
#[derive(Debug, Clone)]
pub struct KeyStore {
    folder: Arc<RuntimeFolder>,
    name: String,
}

impl KeyStore {
    /// Returns the storage of agents on `port`.
    ///
    /// # Errors
    /// Returns [`StoreError::OnDisk`].
    pub fn new(folder: Arc<RuntimeFolder>, port: u16) -> Result<Self, StoreError> {
        if !folder.is_in_memory() {
            return Err(StoreError::OnDisk);
        }
        let name = folder.name(port, "keys");
        Ok(Self { folder, name })
    }

    /// Loads the keys of a previous agent; `None` if no key file exists.
    ///
    /// # Errors
    /// Returns a [`StoreError`] for a symbolic link, a file of another user, one that others may
    /// read, or one without keys.
    pub fn load(&self) -> Result<Option<KeyRing>, StoreError> {
        // A named pipe in place of the file must not block the agent.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&*self.folder, &self.name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(StoreError::Untrusted("it is a symbolic link")),
            Err(errno) => return Err(errno.into()),
        };
        let found = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_nlink != 1 {
            return Err(StoreError::Untrusted("it is not a regular file"));
        }
        if found.st_uid != rustix::process::geteuid().as_raw() {
            return Err(StoreError::Untrusted("it belongs to another user"));
        }
        if Mode::from_raw_mode(found.st_mode) != PRIVATE {
            return Err(StoreError::Untrusted("other users may read or write it"));
        }
        if usize::try_from(found.st_size) != Ok(LENGTH) {
            return Err(StoreError::Untrusted("it contains no keys of this version"));
        }
        let mut bytes = Zeroizing::new([0; LENGTH]);
        File::from(file).read_exact(bytes.as_mut())?;
        match bytes.split_first() {
            Some((&VERSION, ring)) => ring.first_chunk().and_then(KeyRing::from_bytes),
            _ => None,
        }
        .map(Some)
        .ok_or(StoreError::Untrusted("it contains no keys of this version"))
    }

    /// Replaces the stored keys atomically.
    ///
    /// # Errors
    /// Returns [`StoreError::Io`].
    pub fn save(&self, ring: &KeyRing) -> Result<(), StoreError> {
        let new = format!("{}.new", self.name);
        match rustix::fs::unlinkat(&*self.folder, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*self.folder, &new, flags, PRIVATE)?;
        let mut bytes = Zeroizing::new([VERSION; LENGTH]);
        if let Some((_, rest)) = bytes.split_first_mut() {
            rest.copy_from_slice(ring.to_bytes().as_ref());
        }
        File::from(file).write_all(bytes.as_ref())?;
        rustix::fs::renameat(&*self.folder, &new, &*self.folder, &self.name)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    /// Returns a directory in memory, which every Linux has.
    fn in_memory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn store(folder: &Path) -> KeyStore {
        KeyStore::new(Arc::new(RuntimeFolder::open(folder).unwrap()), 8181).unwrap()
    }

    fn ring() -> KeyRing {
        KeyRing::generate("2026-01-01T00:00:00Z".parse().unwrap()).unwrap()
    }

    #[test]
    fn keys_come_back_and_nobody_else_may_read_them() {
        let folder = in_memory();
        let store = store(folder.path());
        assert!(store.load().unwrap().is_none());
        for _ in 0..2 {
            let kept = ring();
            store.save(&kept).unwrap();
            let loaded = store.load().unwrap().unwrap();
            assert_eq!(loaded.to_bytes(), kept.to_bytes());
        }
        let file = store.folder.join(&store.name);
        assert_eq!(std::fs::metadata(file).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn keys_are_written_to_no_disk() {
        // The source directory is on a disk.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = Arc::new(RuntimeFolder::open(folder.path()).unwrap());
        assert!(matches!(
            KeyStore::new(folder, 8181),
            Err(StoreError::OnDisk)
        ));
    }

    #[test]
    fn files_that_others_could_have_written_are_rejected() {
        type Spoil = fn(&Path);
        let spoils: [(&str, Spoil); 8] = [
            ("readable", |file| {
                std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o640)).unwrap();
            }),
            ("writable", |file| {
                std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o602)).unwrap();
            }),
            ("link", |file| {
                let elsewhere = file.with_extension("elsewhere");
                std::fs::rename(file, &elsewhere).unwrap();
                symlink(&elsewhere, file).unwrap();
            }),
            ("second name", |file| {
                std::fs::hard_link(file, file.with_extension("second")).unwrap();
            }),
            ("another user's", |file| {
                std::os::unix::fs::chown(file, Some(1), None).unwrap();
            }),
            ("short", |file| {
                let open = std::fs::OpenOptions::new().write(true).open(file).unwrap();
                open.set_len(40).unwrap();
            }),
            ("another version", |file| {
                let mut bytes = std::fs::read(file).unwrap();
                bytes[0] = 2;
                std::fs::write(file, bytes).unwrap();
            }),
            ("pipe", |file| {
                std::fs::remove_file(file).unwrap();
                rustix::fs::mknodat(rustix::fs::CWD, file, FileType::Fifo, PRIVATE, 0).unwrap();
            }),
        ];
        for (name, spoil) in spoils {
            let folder = in_memory();
            let store = store(folder.path());
            store.save(&ring()).unwrap();
            spoil(&store.folder.join(&store.name));
            let refused = store.load();
            assert!(
                matches!(refused, Err(StoreError::Untrusted(_))),
                "{name}: {refused:?}"
            );
            // The next keys replace it.
            store.save(&ring()).unwrap();
            assert!(store.load().unwrap().is_some(), "{name}");
        }
    }
}
