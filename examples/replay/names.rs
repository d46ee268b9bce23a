//! What the files of a recording are called.

use std::collections::HashMap;

use kernmm::mm::FileRef;
use kernmm::report::{FileName, Names};

/// What the recorded process called its files.
#[derive(Clone, Default)]
pub(crate) struct FileNames {
    /// By the recording's numbers: device, inode, name.
    known: HashMap<u32, (u32, u32, u64, String)>,
    /// The recording's numbers by ours.
    numbers: HashMap<u32, u32>,
}

impl FileNames {
    pub(super) fn learn(&mut self, words: &[&str]) -> Result<(), String> {
        let (major, minor) = words[2].split_once(':').ok_or(format!("not a device: {}", words[2]))?;
        let device = |text: &str| u32::from_str_radix(text, 16).map_err(|_| format!("not a device: {text}"));
        let inode = words[3].parse().unwrap_or(0);
        self.known.insert(number(words[1])?, (device(major)?, device(minor)?, inode, words[6..].join(" ")));
        Ok(())
    }

    pub(super) fn number(&mut self, file: FileRef, number: u32) {
        self.numbers.insert(file.file.0.get(), number);
    }
}

impl Names for FileNames {
    fn file(&self, file: FileRef) -> FileName<'_> {
        let unknown = FileName { major: 0, minor: 0, inode: 0, path: "/dev/zero (deleted)" };
        let known = self.numbers.get(&file.file.0.get()).and_then(|number| self.known.get(number));
        known.map_or(unknown, |(major, minor, inode, path)| FileName {
            major: *major,
            minor: *minor,
            inode: *inode,
            path,
        })
    }

    fn special(&self, id: u32) -> &str {
        ["[vdso]", "[vvar]", "[vvar_vclock]"].get(id as usize).copied().unwrap_or_default()
    }
}

/// A file's number in the recording.
pub(super) fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}
