//! The directory of libcni's results.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::{Recorded, Records, parse};

/// Maximum size of a file, in bytes. A result has one or two thousand, but containerd also passes
/// the pod's annotations to the plugins: up to 256 KiB, where each byte may be escaped as six.
pub(super) const MAX_FILE: u64 = 2 * 1024 * 1024;
/// Maximum number of files: many times the pods of a large node, each in several networks.
pub(super) const MAX_FILES: usize = 4096;

/// The reason why the results cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It does not exist, or access is denied.
    #[error("cannot read the container runtime's records in {}: {source}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A user other than root could have written the content.
    #[error("{} is writable by users other than root: its records are not trusted", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
    },
    /// More files than any node has pods.
    #[error("{} contains more than {MAX_FILES} files", path.display())]
    Full {
        /// The directory.
        path: PathBuf,
    },
}

/// File metadata that changes when a file is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

#[derive(Debug, Clone)]
struct Known {
    stamp: Stamp,
    interfaces: Vec<Arc<Recorded>>,
}

/// The directory, with the content of its files when they were last read.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The user that must own the folder and each file.
    owner: u32,
    known: HashMap<OsString, Known>,
}

impl Folder {
    /// Creates the directory at `path` without reading it. Only files that only `owner` (root) can
    /// write are trusted.
    pub fn new(path: PathBuf, owner: u32) -> Self {
        Self {
            path,
            owner,
            known: HashMap::new(),
        }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads new files, and returns all records. Files that cannot be read or parsed, such as one
    /// that is being written, are skipped.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be read or trusted. There are no records then.
    pub fn read(&mut self) -> Result<Records, FolderError> {
        let known = match self.files() {
            Ok(known) => known,
            Err(error) => {
                self.known.clear();
                return Err(error);
            }
        };
        self.known = known;
        let interfaces = self.known.values().flat_map(|known| &known.interfaces);
        Ok(Records::new(interfaces))
    }

    fn files(&self) -> Result<HashMap<OsString, Known>, FolderError> {
        let unreadable = |source: io::Error| FolderError::Read {
            path: self.path.clone(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty())
            .map_err(|errno| unreadable(errno.into()))?;
        let folder = File::from(folder);
        if !self.is_trusted(&folder.metadata().map_err(unreadable)?) {
            return Err(FolderError::Writable {
                path: self.path.clone(),
            });
        }
        let mut files = HashMap::new();
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            if files.len() >= MAX_FILES {
                return Err(FolderError::Full {
                    path: self.path.clone(),
                });
            }
            if let Ok(Some(known)) = self.file(&folder, &name) {
                files.insert(name, known);
            }
        }
        Ok(files)
    }

    fn file(&self, folder: &File, name: &OsString) -> io::Result<Option<Known>> {
        // Rejects symbolic links, and files that block or have side effects when opened.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || !self.is_trusted(&metadata) {
            return Ok(None);
        }
        let stamp = Stamp {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        if let Some(known) = self.known.get(name)
            && known.stamp == stamp
        {
            return Ok(Some(known.clone()));
        }
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text)?;
        let interfaces = if u64::try_from(text.len()).is_ok_and(|length| length <= MAX_FILE) {
            parse(&text).into_iter().map(Arc::new).collect()
        } else {
            Vec::new()
        };
        Ok(Some(Known { stamp, interfaces }))
    }

    fn is_trusted(&self, metadata: &Metadata) -> bool {
        metadata.uid() == self.owner && metadata.mode() & 0o022 == 0
    }
}
