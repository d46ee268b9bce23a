//! What was written when, and what a power cut leaves of it.

use std::collections::{BTreeMap, BTreeSet};

use super::files::{Files, SECTOR};

/// Something that happened to the files, in the order in which it ended.
#[derive(Clone, Debug)]
enum Event {
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetSize {
        inode: u64,
        size: u64,
    },
    /// A test made or removed a file; that is never lost.
    Put {
        inode: u64,
        bytes: Vec<u8>,
    },
    Remove {
        inode: u64,
    },
    /// A barrier ended: of this file, what had ended before this place when it was asked for is safe.
    Barrier {
        inode: u64,
        before: usize,
    },
}

/// What is left, after a power cut, of writes that no barrier made safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsafe {
    /// Nothing.
    Lost,
    /// All of them.
    Kept,
    /// Some sectors of 512 bytes of each, as a random generator decides that begins with this. Of changes of a file's length the first ones, for they go
    /// through a journal: none is left without those before.
    Torn(u64),
}

/// What happened since the log was started, and how the files were then.
#[derive(Clone, Debug)]
pub(super) struct Log {
    base: Files,
    events: Vec<Event>,
}

impl Log {
    pub(super) fn new(base: Files) -> Self {
        Self { base, events: vec![] }
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn note_write(&mut self, inode: u64, offset: u64, bytes: &[u8]) {
        self.events.push(Event::Write { inode, offset, bytes: bytes.to_vec() });
    }

    pub(super) fn note_size(&mut self, inode: u64, size: u64) {
        self.events.push(Event::SetSize { inode, size });
    }

    pub(super) fn note_put(&mut self, inode: u64, bytes: &[u8]) {
        self.events.push(Event::Put { inode, bytes: bytes.to_vec() });
    }

    pub(super) fn note_remove(&mut self, inode: u64) {
        self.events.push(Event::Remove { inode });
    }

    pub(super) fn note_barrier(&mut self, inode: u64, before: usize) {
        self.events.push(Event::Barrier { inode, before });
    }

    /// The files after a power cut when the first `cut` events had happened.
    pub(super) fn image(&self, cut: usize, rest: Unsafe) -> Files {
        let happened = &self.events[..cut.min(self.events.len())];
        let mut safe = BTreeMap::<u64, usize>::new();
        for event in happened {
            if let Event::Barrier { inode, before } = event {
                let end = safe.entry(*inode).or_default();
                *end = (*end).max(*before);
            }
        }
        let is_safe = |inode, at| safe.get(&inode).is_some_and(|&end| at < end);
        let mut files = self.base.clone();
        let mut random = Random(match rest {
            Unsafe::Torn(seed) => seed,
            _ => 0,
        });
        let mut survives = |is_safe: bool| match rest {
            _ if is_safe => true,
            Unsafe::Lost => false,
            Unsafe::Kept => true,
            Unsafe::Torn(_) => random.next() & 1 == 0,
        };
        let mut length_lost = BTreeSet::new();
        for (at, event) in happened.iter().enumerate() {
            match event {
                Event::Write { inode, offset, bytes } => {
                    for (start, sector) in sectors(*offset, bytes) {
                        if survives(is_safe(*inode, at)) {
                            files.write(*inode, start, sector);
                            // A disk writes whole sectors: behind the end of the file they are zero.
                            let (end, size) = (start + sector.len() as u64, files.size(*inode).unwrap_or(0));
                            let rest = end.next_multiple_of(SECTOR as u64).min(size).saturating_sub(end);
                            files.write(*inode, end, &[0; SECTOR][..rest as usize]);
                        }
                    }
                }
                Event::SetSize { inode, size } => {
                    if !survives(is_safe(*inode, at)) {
                        length_lost.insert(*inode);
                    }
                    if !length_lost.contains(inode) {
                        files.set_size(*inode, *size);
                    }
                }
                Event::Put { inode, bytes } => {
                    length_lost.remove(inode);
                    files.remove(*inode);
                    files.set_size(*inode, 0);
                    files.write(*inode, 0, bytes);
                }
                Event::Remove { inode } => files.remove(*inode),
                Event::Barrier { .. } => {}
            }
        }
        files
    }
}

/// The parts of a write that lie in one sector each, and where.
fn sectors(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    // Writes begin at pages, and so at sectors.
    (offset..).step_by(SECTOR).zip(bytes.chunks(SECTOR))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}
